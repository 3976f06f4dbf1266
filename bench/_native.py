"""What of the benchmarks is written in C (`native/`): programs, and libraries of functions. Compiled on first use."""

from __future__ import annotations

import atexit
import ctypes
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from _harness import HERE, WATCHDOG_S, Failed, Figures, Missing


@cache
def _build_directory() -> Path:
    directory = tempfile.mkdtemp(prefix="embridge-bench-")
    owner = os.getpid()
    atexit.register(lambda: shutil.rmtree(directory) if os.getpid() == owner else None)
    return Path(directory)


@cache
def _compiled(name: str, *options: str) -> Path:
    result = _build_directory() / name
    include = HERE.parent / "allocator" / "native"
    command = ["gcc", "-std=gnu11", "-O3", "-Wall", "-Wextra", "-pthread", *options, f"-I{include}", "-o", str(result)]
    try:
        subprocess.run([*command, str(HERE / "native" / f"{name}.c")], check=True)
    except FileNotFoundError:
        raise Missing("gcc is not installed") from None
    return result


def native(name: str, *arguments: object) -> Figures:
    """Run bench/native/`name`.c, compiled on first use; its output is lines of `metric value`.

    Raises: Missing, where there is no compiler; Failed; CalledProcessError, where the program failed.
    """
    command = [str(_compiled(name)), *map(str, arguments)]
    try:
        text = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=WATCHDOG_S).stdout
    except subprocess.TimeoutExpired:
        raise Failed(f"did not end within {WATCHDOG_S:.0f} s") from None
    return {metric: float(value) for metric, value in (line.split() for line in text.splitlines())}


POINTER, SIZE, WORD = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint32
LONG = {  # they copy or sleep, and are called without the GIL
    "copy_plain": (POINTER, POINTER, SIZE),
    "copy_one_stream": (POINTER, POINTER, SIZE),
    "copy_two_streams": (POINTER, POINTER, SIZE),
    "wait_for_ring": (POINTER, WORD),
    "wait_for_credit": (POINTER, WORD, WORD),
    "sweep": (POINTER, SIZE),
    "write_rows": (POINTER, SIZE, SIZE, ctypes.c_uint16),
}
SHORT = {  # done before the GIL could have been taken again
    "ring": (POINTER,),
    "give_credit": (POINTER, WORD, WORD),
    "write_ends": (POINTER, SIZE, SIZE, ctypes.c_uint16),
    "ends_are": (POINTER, SIZE, SIZE, ctypes.c_uint16),
}


class Functions:
    """`native/one_copy.c` and `native/rounds.c`, each function by its name.

    Made before processes are forked. Raises: Missing, where there is no compiler.
    """

    def __init__(self) -> None:
        for name in ("one_copy", "rounds"):
            path = str(_compiled(name, "-shared", "-fPIC"))
            for library, functions in ((ctypes.CDLL(path), LONG), (ctypes.PyDLL(path), SHORT)):
                for function, arguments in functions.items():
                    if hasattr(library, function):
                        found = getattr(library, function)
                        found.argtypes, found.restype = arguments, ctypes.c_int
                        setattr(self, function, found)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"no function {name} in bench/native")


functions = cache(Functions)


def address_of(memory: Any, offset: int = 0) -> int:
    """Of writable shared memory, as C takes it; the same in processes forked from here on."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory, offset))
