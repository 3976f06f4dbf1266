"""Storms as tests: a bounded share of each engine here, 500 kills an engine in `make storm`; longer ones from the
command line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.mounting import CAN_MOUNT
from support.nodes import every_engine

pytestmark = pytest.mark.process

TESTS = Path(__file__).parents[1]
KILLS = "kill worker,kill poller,kill bootstrap,kill client,stop writer"
SHARED_MACHINE = [
    *(
        "--allow-recovery-p99",
        "2",
        "--allow-recovery",
        "5",
        "--allow-recovery-disturbed",
        "30",
        "--allow-restart",
        "60",
    ),
    *("--allow-gone", "5", "--allow-gone-disturbed", "20", "--deadline", "90", "--peer-timeout", "20"),
]
"""Other tests run at the same time: what is measured in milliseconds is for a machine that is quiet."""


def command(module: str, *words: str, folder: Path, timeout_s: float) -> str:
    """Run one of this package's commands; what it printed. Its history is kept where the assertion says."""
    paths = [*filter(None, [os.environ.get("PYTHONPATH")]), str(TESTS)]
    done = subprocess.run(
        [sys.executable, "-m", module, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-2000:]}\nhistory in {folder}"
    return done.stdout


@pytest.mark.timeout(400)
@pytest.mark.parametrize("engine", ["shm", pytest.param("mooncake", marks=pytest.mark.storm)])
def test_a_short_storm_breaks_no_promise(engine: str, tmp_path: Path) -> None:
    """P3, P5, P6, P8, P11, R53, R55, R63: four kills of processes and clients under load, or as many as five seconds
    have room for; items are fetched meanwhile, in place and as from another host.
    """
    said = command(
        "storm",
        *("--engine", engine, "--seed", "11", "--kills", "4", "--seconds", "5", "--pause", "0.25", "--kinds", KILLS),
        *("--encoders", "1", "--schedulers", "1", *SHARED_MACHINE),
        folder=tmp_path,
        timeout_s=380,
    )
    seen = json.loads(said.splitlines()[1])
    assert seen["kills"] >= 2
    assert seen["succeeded"] > 0
    assert seen["looks"] > 1000
    assert seen["fetched"] > 0
    assert "seed 11 held" in said


@pytest.mark.storm
@pytest.mark.timeout(1800)
@every_engine
@pytest.mark.parametrize("seed", range(1, 11))
def test_storms_of_all_kinds_break_no_promise(engine: str, seed: int, tmp_path: Path) -> None:
    """P1, P3, P5, P6, P8, P9, P10, P11, P13: 50 kills a seed, with the faults that the seed draws; odd seeds have two
    encode nodes.
    """
    bounded = ["--shm-size", "128M"] if CAN_MOUNT else []
    said = command(
        "storm",
        *(
            "--engine",
            engine,
            "--seed",
            str(seed),
            "--kills",
            "50",
            "--seconds",
            "900",
            "--encode-nodes",
            str(1 + seed % 2),
        ),
        *("--encoders", "1", *bounded, *SHARED_MACHINE),
        folder=tmp_path,
        timeout_s=1700,
    )
    assert f"seed {seed} held" in said


@pytest.mark.storm
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(1, 5))
def test_encoders_that_are_stopped_and_killed_in_the_middle_of_a_write_break_no_promise(
    seed: int, tmp_path: Path
) -> None:
    """P3, P6, P7: some hundred of them, while others have their blocks as soon as these are free."""
    said = command(
        "storm",
        *("--engine", "shm", "--seed", str(seed), "--kills", "60", "--seconds", "240", "--pause", "0.25"),
        *("--kinds", "stop writer,kill client,stop process", "--encoders", "4", "--in-flight", "20", *SHARED_MACHINE),
        folder=tmp_path,
        timeout_s=560,
    )
    assert json.loads(said.splitlines()[1])["stopped_in_mid_write"] > 20
    assert f"seed {seed} held" in said


@pytest.mark.storm
@pytest.mark.timeout(300)
@every_engine
def test_a_short_soak_drifts_nowhere(engine: str, tmp_path: Path) -> None:
    """P12, P20: a minute of full load; `make soak` is an hour of it.

    What malloc takes for a scheduler's rows grows for that long.
    """
    words = ("--engine", engine, "--seconds", "60", "--warm-up", "0.6", "--every", "0.25")
    said = command("storm.soak", *words, folder=tmp_path, timeout_s=200)
    assert "no drift" in said
