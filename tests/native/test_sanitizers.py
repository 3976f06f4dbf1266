"""The core's structures as threads, under the sanitizers: no data race, no access out of bounds, no undefined
behaviour.

What ThreadSanitizer sees is the C11 model, not what this processor happens to do: an order that x86 gives for nothing
and a header forgot is a race. Payloads are read and written by plain accesses, so each race-free run says that they are
ordered.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from native_support import REPORT, build, run, succeed

# Program, the argument that makes it take about a second when the machine is busy, and the one for `make storm`.
PROGRAMS = [
    pytest.param("ring", 9_000, 3_000_000, id="ring"),
    pytest.param("cells", 8_000, 1_000_000, id="cells"),
    pytest.param("status", 8, 500, id="status"),
    pytest.param("doorbell", 6_000, 300_000, id="doorbell"),
    pytest.param("copy", 24, 20_000, id="copy"),
    pytest.param("checksum", 300, 10_000, id="checksum"),
    pytest.param("shelf", 4_000, 1_000_000, id="shelf"),
]
KINDS = ["thread", "address"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("program", "size", "_long"), PROGRAMS)
def test_clean(program: str, size: int, _long: int, kind: str, tmp_path: Path) -> None:
    """P1, P5, D12, R16, R17, R39 to R49, R84: one owner a block, words that only rise, terminal phases that absorb,
    retirement at the last epoch; what is pinned is whole.
    """
    succeed(build(tmp_path, program, kind), size, 1, limit_s=100)


@pytest.mark.storm
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("program", "_short", "size"), PROGRAMS)
def test_clean_for_long(program: str, _short: int, size: int, kind: str, tmp_path: Path) -> None:
    """P1, P5, D12, R16, R17, P19: the same for longer; the seed is in the command that a failure shows."""
    succeed(build(tmp_path, program, kind), size, random.getrandbits(31), limit_s=900)


@pytest.mark.parametrize("program", ["ring", "cells", "status", "shelf"])
def test_a_missing_release_is_reported(program: str, tmp_path: Path) -> None:
    """P1, P6: these runs would notice a structure that published without an order, even where the processor
    keeps it.
    """
    size = {"ring": 18_000, "cells": 20_000, "status": 8, "shelf": 10_000}[program]
    done = run(build(tmp_path, program, "thread", "BREAK_RELEASE"), size, 1, limit_s=100)
    assert done.returncode == REPORT, done.stderr
    assert "ThreadSanitizer: data race" in done.stderr


@pytest.mark.storm
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core: two threads see each other only at a switch")
def test_a_pin_and_a_look_in_no_order_tear_rows(tmp_path: Path) -> None:
    """R41, R43: the stores and loads that must be sequentially consistent, made relaxed; x86 shows it, too."""
    done = run(build(tmp_path, "shelf", "plain", "BREAK_SEQ_CST"), 50_000_000, 3, limit_s=200)
    assert done.returncode == 1, done.stderr
    assert "not: rows[i] == words[ITEM_ROWS]" in done.stderr
