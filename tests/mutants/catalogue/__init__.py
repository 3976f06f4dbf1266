"""The mutants: what each breaks, where, and the tests that are to turn red.

A mutant is one change of text. `old` must stand exactly once in its file (a test in `make test` checks it), so that the
list cannot rot: who changes that line changes its mutant, too. The tests are the cheapest that notice; a broken rule
should be noticed by one that cites it. Where two steps of the C core are swapped or torn apart, the mutant yields the
processor between them: else which run hits those few instructions would be chance.

Each file has the mutants of one room of the sources; `files.py` has the tests that they name most.
"""

from typing import Final

from .bootstrap import BOOTSTRAP
from .cache import CACHE
from .client_rendezvous import CLIENT_RENDEZVOUS
from .client_rows import CLIENT_ROWS
from .client_slots import CLIENT_SLOTS
from .core import CORE
from .discovery import DISCOVERY
from .engines import ENGINES
from .fetches import FETCHES
from .following import FOLLOWING
from .node import NODE
from .poller import POLLER
from .poller_parts import POLLER_PARTS
from .scheduler import SCHEDULER
from .service import SERVICE_MUTANTS
from .shelf import SHELF_MUTANTS
from .tables import TABLES
from .transfer import TRANSFER
from .web import WEB
from .workers import WORKERS

MUTANTS: Final = [
    *CORE,
    *TABLES,
    *BOOTSTRAP,
    *POLLER,
    *POLLER_PARTS,
    *TRANSFER,
    *WORKERS,
    *CLIENT_ROWS,
    *CLIENT_RENDEZVOUS,
    *CLIENT_SLOTS,
    *SCHEDULER,
    *SHELF_MUTANTS,
    *FETCHES,
    *FOLLOWING,
    *CACHE,
    *NODE,
    *SERVICE_MUTANTS,
    *WEB,
    *DISCOVERY,
    *ENGINES,
]
