"""Read by every Python process that a test starts with fail points: see `support.faults`."""

import os
from pathlib import Path

from support import faults

if faults.DIR_VARIABLE in os.environ:
    faults.install(Path(os.environ[faults.DIR_VARIABLE]))
