"""Litmus tests: two threads, many iterations from random starts; what each outcome is, and which one is forbidden, is
in the C files.

A test that cannot fail proves nothing: each is run once more with its structure weakened, and must then see the
forbidden outcome.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from native_support import build, run, succeed

LITMUS = ["litmus_ring", "litmus_doorbell", "litmus_cell", "litmus_status"]
ITERATIONS, ITERATIONS_FOR_LONG = 10_000, 5_000_000
WEAKENED = [
    ("litmus_ring", "BREAK_TAIL_FIRST"),
    ("litmus_doorbell", "BREAK_SEQ_CST"),
    ("litmus_doorbell", "BREAK_SECOND_LOOK"),
    ("litmus_cell", "BREAK_CELL_FIRST"),
    ("litmus_status", "BREAK_SENT_FIRST"),
]
# A program ends at this many seconds, whatever is left of its iterations.
LIMIT_S, LIMIT_WEAKENED_S, LIMIT_LONG_S = 10, 60, 120

two_cores = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="one core: two threads see each other only at a switch"
)


@pytest.mark.parametrize("program", LITMUS)
def test_the_forbidden_outcome_is_not_seen(program: str, tmp_path: Path) -> None:
    """P1, P5, P6, P8: records before the tail, exposure before the cell, rows before `sent`; at the bell one sees the
    other.
    """
    said = succeed(build(tmp_path, program, "plain"), ITERATIONS, 1, LIMIT_S, limit_s=100)
    assert "forbidden: 0\n" in said


@pytest.mark.storm
@pytest.mark.parametrize("program", LITMUS)
def test_the_forbidden_outcome_is_not_seen_for_long(program: str, tmp_path: Path) -> None:
    """P1, P5, P6, P8, P19: the same for longer; the seed is in the command that a failure shows."""
    said = succeed(
        build(tmp_path, program, "plain"), ITERATIONS_FOR_LONG, random.getrandbits(31), LIMIT_LONG_S, limit_s=300
    )
    assert "forbidden: 0\n" in said


@two_cores
@pytest.mark.parametrize(("program", "weakness"), WEAKENED)
def test_a_weakened_structure_is_detected(program: str, weakness: str, tmp_path: Path) -> None:
    """P1, P5, P6, P8: with the stores swapped, without the order or the second look, the forbidden outcome is seen;
    then it stops.
    """
    done = run(build(tmp_path, program, "plain", weakness), 1 << 40, 1, LIMIT_WEAKENED_S, limit_s=100)
    assert done.returncode == 1, done.stderr
    assert "forbidden: 0\n" not in done.stdout
    assert "forbidden: " in done.stdout
