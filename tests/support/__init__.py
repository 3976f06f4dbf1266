"""What tests that run real processes have in common: nodes, processes that attach to them, rows that can be
recomputed.
"""

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # before numpy and torch: their threads would spin on cores that other tests need
