"""C{twistd msglog}."""

from twisted.application.service import ServiceMaker

msglog = ServiceMaker(
    "msglog",
    "msglog.tap",
    "A message log whose ACK means: on disk, exactly once, in order",
    "msglog",
)
