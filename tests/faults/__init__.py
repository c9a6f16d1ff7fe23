"""
Fault suites: programs that run for as long as they are told, and whose short form is in CI.

They use the modules of C{tests/integration}, which pytest finds in the folder of the tests; so
that folder is put on the path here too.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "integration"))
