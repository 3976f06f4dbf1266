"""Pins the payload in memory, and lets a GPU copy from it directly: an optimisation, never a requirement.

What took effect is recorded and shown (`embridge doctor`, `embridge status`). A step that does not take effect costs
speed and nothing else.
"""

from __future__ import annotations

import errno
import os
import sys

from embridge.allocator._core import Mapping


def lock(mapping: Mapping) -> int:
    """Have a mapping's pages kept in memory, each from when this mapping has it. Returns 0 or the errno, at once."""
    return mapping.lock(0, mapping.size)


def lock_note(code: int) -> str:
    """What an errno of `lock` means for the operator."""
    if code == 0:
        return "locked"
    if code in (errno.ENOMEM, errno.EPERM, errno.EAGAIN):
        return f"not locked: {os.strerror(code)}; raise `ulimit -l` (memlock) or give CAP_IPC_LOCK"
    return f"not locked: {os.strerror(code)}"


def is_cuda_in_use() -> bool:
    """Whether this process already has a CUDA context. The question creates none and imports no torch."""
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda.is_initialized())


def register_with_cuda(mapping: Mapping) -> tuple[bool, str]:
    """Register the mapping with CUDA in this process (cudaHostRegister), for asynchronous copies to and from a GPU.

    It calls `torch.cuda.cudart().cudaHostRegister(ptr, size, flags)`. Returns whether it took effect, and a note.
    """
    import torch

    if not torch.cuda.is_available():
        return False, "no CUDA device"
    code = int(torch.cuda.cudart().cudaHostRegister(mapping.address, mapping.size, 0))  # type: ignore[no-untyped-call]
    return code == 0, "registered" if code == 0 else f"cudaHostRegister failed with code {code}"


def unregister_from_cuda(mapping: Mapping) -> None:
    """Undo `register_with_cuda`. Call it before the mapping is closed."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.cudart().cudaHostUnregister(mapping.address)  # type: ignore[no-untyped-call]
