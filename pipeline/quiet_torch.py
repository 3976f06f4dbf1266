"""torch says, once a process, that a view of read-only memory must not be written to: which is why it is read-only.

That is silenced by one use of each call in advance. `warnings.catch_warnings` changes what belongs to the whole
process, and where two threads use it at a time, the filters of one may stay for ever: so it is used once.
"""

from __future__ import annotations

import threading
import warnings

_turn = threading.Lock()
_is_quiet = False


def quieten_torch() -> None:
    """Before views of read-only memory are made. Any thread; again: nothing happens."""
    global _is_quiet
    if _is_quiet:
        return
    import numpy as np
    import torch

    with _turn:
        if _is_quiet:
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            torch.from_numpy(np.frombuffer(b"\0", np.uint8))
            torch.frombuffer(b"\0", dtype=torch.uint8)
        _is_quiet = True
