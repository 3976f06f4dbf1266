"""Begins the process of a launcher, with the import path of the process that launches and nothing else inherited.

The process that launches calls `command`, which returns the words of the launcher's command line. The launcher's
process calls `prepare` first, before it imports the launcher.

The import path is handed over, because the process that launches may have found this package by a path of its own
(`sys.path`, a folder beside its script). The standard library comes first. The working directory is left out, so that a
user's `secrets.py` does not stand for the standard library's. `-P` keeps the working directory out of the processes
that an engine starts, too.

`prepare` sets anew what else a process inherits and a node must not depend on: signals that are ignored (SIGCHLD,
without which no exit status is known; what `nohup` and shells ignore) or blocked; descriptors 0, 1 and 2 that are
closed (a segment would be opened there, and somebody's message written into it); a working directory that may be
removed; a umask. Limits, priority and environment stay as the user has set them, with one exception: numpy's library of
linear algebra gets one thread unless the user has chosen a number. It would begin one a core in every process of a node
that imports it, and no process of a node multiplies a matrix.
"""

from __future__ import annotations

import os
import signal
import sys
import sysconfig
from pathlib import Path
from typing import Final

LAUNCHER: Final = "embridge.pipeline.node.launcher"  # in its command line, for people who look for it there
_CODE: Final = (
    "import sys; at = sys.argv.index('--'); given = sys.argv[at + 1:]; sys.argv[:] = sys.argv[1:at]; "
    "sys.path[:] = given + [entry for entry in sys.path if entry not in given]; "
    "from embridge.pipeline.node.launcher_start import prepare; prepare(); "
    "from embridge.pipeline.node.launcher import main; sys.exit(main())"
)
ONE_THREAD: Final = ("OPENBLAS_NUM_THREADS", "1")
_KEPT: Final = {signal.SIGPIPE, signal.SIGXFSZ}  # which the interpreter ignores


def command(ready_fd: int, alive_fd: int, parent_fd: int, *, keeps_run_dir: bool = True) -> list[str]:
    """The words that start a launcher with these descriptors (see its `main`)."""
    told = ["--ready-fd", str(ready_fd), "--alive-fd", str(alive_fd), "--parent-fd", str(parent_fd)]
    told += [] if keeps_run_dir else ["--remove-run-dir"]
    return [sys.executable, *_interpreter_flags(), "-P", "-c", _CODE, LAUNCHER, *told, "--", *import_path()]


def _interpreter_flags() -> list[str]:
    """Flags of this interpreter that say what is imported from where."""
    flags = sys.flags
    given = {"-I": flags.isolated, "-E": flags.ignore_environment, "-s": flags.no_user_site, "-S": flags.no_site}
    return [flag for flag, is_set in given.items() if is_set]


def import_path() -> list[str]:
    """Where this process finds modules, in the order in which a node of it is to look.

    The standard library, then everything in this process's order; last the folder of the script that it runs. The
    working directory is left out where this package does not stand in it.
    """
    standard = _standard_library()
    roots = _roots()
    here = _working_directory()
    script = os.path.dirname(getattr(sys.modules["__main__"], "__file__", None) or "")
    first: list[str] = []
    found: list[str] = []
    last: list[str] = []
    for entry in sys.path:
        path = here if entry == "" else os.path.abspath(entry) if here and os.path.exists(entry) else entry
        if path in standard or path.endswith(_zipped_library()):
            first.append(path)
        elif path in roots or path not in (here, script):
            found.append(path)
        elif path != here:
            last.append(path)
    missing = [root for root in roots if root not in first + found]
    return list(dict.fromkeys([*first, *missing, *found, *last]))


def _standard_library() -> set[str]:
    folders = {os.path.dirname(os.__file__), sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
    return folders | {os.path.join(folder, "lib-dynload") for folder in folders}


def _zipped_library() -> str:
    return f"{os.sep}python{sys.version_info.major}{sys.version_info.minor}.zip"


def _roots() -> list[str]:
    """The folder in which this process has found `embridge`; none for an editable install: its path file finds it."""
    found = Path(os.path.abspath(sys.modules["embridge.pipeline"].__path__[0]))
    return [str(found.parents[1])] if found.parts[-2:] == ("embridge", "pipeline") else []


def _working_directory() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return ""


def prepare() -> None:
    """Set anew what this process has inherited and a node must not depend on, before the launcher is imported."""
    _open_standard_descriptors()
    _reset_signals()
    os.umask(0o077)
    os.chdir("/")
    os.environ.setdefault(*ONE_THREAD)  # before an engine's library imports numpy in a process that is forked from here


def _open_standard_descriptors() -> None:
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest that is free, so this one
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)


def _reset_signals() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in signal.valid_signals() - _KEPT:
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
