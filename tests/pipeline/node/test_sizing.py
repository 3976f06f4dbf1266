"""How many blocks a node has where nobody says, and what it says where those that are wanted do not fit (P13).

The nodes of these tests start where /dev/shm is what a container has: a tmpfs of 64 MB of their own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from support.mounting import mounting

from embridge.allocator.errors import SegmentError
from embridge.allocator.geometry import Geometry, Limits, Role
from embridge.allocator.segment import Space
from embridge.pipeline.node.sizing import DEFAULT_BLOCKS, MIB, Sizes, chosen_pool

CONTAINER = Space(64 * MIB, 64 * MIB)
ENDLESS = Space(sys.maxsize, sys.maxsize)


def total(role: Role, geometry: Geometry, limits: Limits | None = None) -> int:
    return Sizes.of(role, geometry, limits or Limits()).total


def test_a_pool_of_which_nobody_said_the_size_is_the_default_where_there_is_room() -> None:
    for role in Role:
        for space in (ENDLESS, Space(200 * MIB, 200 * MIB)):
            assert chosen_pool(role, Geometry(), Limits(), space).num_blocks == DEFAULT_BLOCKS


@pytest.mark.parametrize("hidden_size", [64, 3584, 8192])
def test_a_pool_of_which_nobody_said_the_size_leaves_half_to_a_second_node(hidden_size: int) -> None:
    """P13: as many blocks as fit into that half, and no block more would."""
    geometry = Geometry(hidden_size=hidden_size)
    pools = [chosen_pool(role, geometry, Limits(), CONTAINER) for role in Role]
    assert sum(total(role, pool) for role, pool in zip(Role, pools, strict=True)) <= CONTAINER.free
    for role, pool in zip(Role, pools, strict=True):
        one_more = replace(pool, num_blocks=pool.num_blocks + 1)
        assert pool.num_blocks == DEFAULT_BLOCKS or total(role, one_more) > CONTAINER.size // 2


def test_a_pool_of_which_nobody_said_the_size_takes_what_others_have_left() -> None:
    left = Space(20 * MIB, 64 * MIB)
    pool = chosen_pool(Role.ENCODE, Geometry(), Limits(), left)
    assert 0 < total(Role.ENCODE, pool) <= left.free


def test_a_size_that_somebody_said_is_taken_or_refused_with_the_one_that_fits() -> None:
    """P13."""
    wanted = Geometry(num_blocks=64)
    assert chosen_pool(Role.ENCODE, wanted, Limits(), Space(100 * MIB, 100 * MIB)) == wanted
    with pytest.raises(SegmentError, match=r"shared memory: \d\.\d MiB control segment \+ 58\.0 MiB pay") as refused:
        chosen_pool(Role.ENCODE, wanted, Limits(), CONTAINER)
    text = str(refused.value)
    assert "(64 blocks of 128 tokens of 7184 bytes) > 64.0 MiB free of 64.0 MiB in /dev/shm; " in text
    assert text.endswith("or enlarge /dev/shm (containers: --shm-size)")
    fits = int(text.split("lower num_blocks to ")[1].split()[0])
    most, too_many = (total(Role.ENCODE, replace(wanted, num_blocks=blocks)) for blocks in (fits, fits + 1))
    assert most <= CONTAINER.free < too_many


def test_where_not_even_one_block_fits_the_settings_that_help_are_named() -> None:
    """P13."""
    tiny = Space(8 * MIB, 64 * MIB)
    with pytest.raises(SegmentError, match=r"lower block_size \(--block-size\), or num_slots \(--num-slots 256: "):
        chosen_pool(Role.ENCODE, Geometry(), Limits(), tiny)
    assert chosen_pool(Role.ENCODE, Geometry(), Limits(num_slots=256), tiny).num_blocks


# ---- in 64 MB


def in_container(run_dir: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A program where /dev/shm is a tmpfs of its own."""
    mount = 'mount -t tmpfs -o size=64m tmpfs /dev/shm && exec "$@"'
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", mount, "sh", sys.executable, *words]
    environ = {**os.environ, "XDG_RUNTIME_DIR": str(run_dir)}
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=100, check=False)


PAIR = """
import os
from embridge import PipelineConfig, launch
with launch(PipelineConfig(role="encode")) as encode, launch(PipelineConfig(role="language")) as language:
    print("both", os.listdir("/dev/shm"))
"""


@mounting
@pytest.mark.process
def test_a_default_node_of_each_role_starts_in_a_container(own_dir: Path) -> None:
    """P13: both on one host, each with a pool that fits, and a line that says so."""
    done = in_container(own_dir, "-c", PAIR)
    assert (done.returncode, done.stdout) == (0, "both []\n"), done.stderr
    said = [line for line in done.stderr.splitlines() if "blocks instead of 64" in line]
    assert len(said) == 2, done.stderr


@mounting
@pytest.mark.process
def test_a_pool_that_does_not_fit_is_refused_by_the_command_with_the_number_that_does(own_dir: Path) -> None:
    """P13, P9."""
    done = in_container(own_dir, "-m", "embridge", "launch", "--role", "encode", "--num-blocks", "64")
    assert done.returncode == 1
    assert "lower num_blocks to 6" in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr


@mounting
def test_doctor_adds_up_both_segments_of_both_roles(own_dir: Path) -> None:
    done = in_container(own_dir, "-m", "embridge", "doctor", "--json")
    check = next(check for check in json.loads(done.stdout) if check["name"] == "/dev/shm")
    pools = [(role, chosen_pool(role, Geometry(), Limits(), CONTAINER)) for role in Role]
    both = sum(total(role, pool) for role, pool in pools) / MIB
    assert check["state"] == "warn"
    assert check["seen"].endswith(f"one of each: {both:.1f} MiB")
    for role, pool in pools:
        sizes = Sizes.of(role, pool, Limits())
        assert (
            f"{role.name.lower()} node: {sizes.control / MIB:.1f} MiB control + {sizes.payload / MIB:.1f} MiB payload "
            f"of {pool.num_blocks} blocks"
        ) in check["seen"]


@mounting
@pytest.mark.process
@pytest.mark.storm
def test_the_demo_runs_in_a_container(own_dir: Path) -> None:
    """P13, P6: two nodes of its own sizes, and every byte right."""
    pytest.importorskip("skimage")
    done = in_container(own_dir, "-m", "embridge", "demo", "--requests", "1", "--plain")
    assert done.returncode == 0, done.stderr
    assert "1 of 1 requests arrived with every byte right" in done.stdout
