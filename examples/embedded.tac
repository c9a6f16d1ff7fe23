"""
An application that logs its own events beside those of its clients, into one file.

    twistd -noy embedded.tac

It counts seconds, and each count is durable before it is printed.
"""

from uuid import UUID

from twisted.application.service import Application, IServiceCollection
from twisted.application.internet import TimerService
from twisted.internet import endpoints, reactor
from twisted.logger import Logger

from msglog import FileStore, Journal, MessageLogFactory, MessageLogService

LISTEN = "tcp:7514:interface=127.0.0.1"
# Made once, by uuid.uuid4(), and this application's for ever.
CLIENT = UUID("5a4c3f52-7a31-4c0e-9d68-6c1f6d8e2b11")

log = Logger()
application = Application("counter")


def on_failure(error: Exception) -> None:
    """The disk failed: nothing can be promised until a restart has recovered the log."""
    log.critical("stopping: {error}", error=error)
    reactor.stop()


store = FileStore(reactor, "messages.jsonl", on_failure=on_failure)
factory = MessageLogFactory(reactor, store)
service = MessageLogService(
    store, factory, [(LISTEN, endpoints.serverFromString(reactor, LISTEN))]
)
service.setServiceParent(IServiceCollection(application))

journal = Journal(store, CLIENT)
count = 0


def tick() -> None:
    global count
    count += 1
    receipt = journal.log(b'{"count":%d}' % count)
    receipt.addCallback(lambda r: log.info("durable: {r.sequence}", r=r))
    receipt.addErrback(lambda f: log.error("not logged: {f.value}", f=f))


TimerService(1, tick).setServiceParent(IServiceCollection(application))
