"""What engines' libraries write on standard error: bounded, and what was said before is still there (P12)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from embridge.workers.timing import NS
from embridge.workers.transfer.engines import LOG_PATTERN, log_name

MOST = 100
SPEAKING = f"""
import os, sys
from pathlib import Path
from embridge.workers.transfer.engine_log import EngineLog
log = EngineLog(Path(sys.argv[1]), {MOST})
for now_ns, said in enumerate(sys.argv[2:], 1):
    os.write(2, said.encode())
    log.look(now_ns * {NS})
"""


def said(path: Path, *texts: str) -> dict[str, str]:
    """What a process has left that said so, a second between."""
    subprocess.run([sys.executable, "-c", SPEAKING, path, *texts], timeout=60, check=True)
    return {it.name: it.read_text() for it in path.parent.glob(LOG_PATTERN)}


def test_a_file_that_is_full_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / log_name("worker0", ["mooncake"])
    full, more = "a" * MOST, "b" * MOST
    assert said(path, "few") == {path.name: "few"}
    assert said(path, full, "few") == {path.name: "few", f"{path.name}.1": full}
    assert said(path, full, "few", more, "last") == {path.name: "last", f"{path.name}.1": f"few{more}"}
    assert {it.stat().st_mode & 0o777 for it in tmp_path.iterdir()} == {0o600}


def test_what_the_process_before_said_is_kept_and_no_link_is_followed(tmp_path: Path) -> None:
    path = tmp_path / log_name("worker0", ["mooncake"])
    said(path, "crashed, because ...")
    assert said(path, "begun") == {path.name: "begun", f"{path.name}.1": "crashed, because ..."}
    path.unlink()
    (other := tmp_path / "other").write_text("not ours")
    path.symlink_to(other)
    said(path, "begun")
    assert other.read_text() == "not ours"
    assert (path.read_text(), path.is_symlink()) == ("begun", False)


def test_it_looks_once_a_second_and_goes_on_as_it_was_while_no_file_can_be_made(tmp_path: Path) -> None:
    """For every turn of a worker asks; and a process may have no descriptor left."""
    path = tmp_path / log_name("worker0", ["mooncake"])
    code = f"""{SPEAKING}
import resource
limits = resource.getrlimit(resource.RLIMIT_NOFILE)
log.look({NS})
os.write(2, b"{"a" * MOST}")
log.look(2 * {NS} - 1)
print(os.path.exists(sys.argv[1] + ".1"))
resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
log.look(2 * {NS})
os.write(2, b"more")
resource.setrlimit(resource.RLIMIT_NOFILE, limits)
log.look(3 * {NS})
os.write(2, b"later")
"""
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "False\n"
    assert {it.name: it.read_text() for it in tmp_path.iterdir()} == {
        path.name: "later",
        f"{path.name}.1": "a" * MOST + "more",
    }
