"""SIGKILL between any two instructions of the core's operations, and of the recovery from that: `single_step.c` says
how.

Among the scenes are structures that are broken in one place each; those must be found out, or the others prove nothing.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import pytest
from native_support import build, run

CANNOT = 77
LINE = re.compile(r"(.+): (\d+) boundaries, (\d+) states, (\d+) kills, (\d+) boundaries in recovery, (\d+) violations")
OPERATIONS = [
    "acquire",
    "release",
    "expose",
    "quarantine",
    "reclaim",
    "push",
    "pop",
    "advance",
    "raise",
    "mark",
    "take bits",
    "open",
    "lease",
    "write",
    "bind",
    "grant",
    "give back",
    "withdraw",
    "leave",
    "publish",
    "retire",
    "pin",
]
OF_THE_BELL = ["ring", "sleep", "arm"]


class Scene(NamedTuple):
    """What one line of the program says."""

    boundaries: int
    states: int
    kills: int
    in_recovery: int
    violations: int


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return build(tmp_path_factory.mktemp("single_step"), "single_step", "shipped")


def stepped(
    program: list[str], mode: str, limit: int, inner: int, prefix: str = "", *, limit_s: float = 100
) -> dict[str, Scene]:
    """What was seen, scene by scene, of the sound structures; the broken ones have been found out."""
    done = run(program, mode, limit, inner, prefix, limit_s=limit_s)
    if done.returncode == CANNOT:
        pytest.skip(done.stdout.strip())
    scenes = {match[1]: Scene(*map(int, match.groups()[1:])) for match in LINE.finditer(done.stdout)}
    assert done.returncode == 0, done.stdout + done.stderr
    sound = {name: scene for name, scene in scenes.items() if not name.startswith("broken")}
    assert sound
    assert not any(scene.violations for scene in sound.values())
    if not prefix:
        assert sum(scene.violations > 0 for scene in scenes.values()) == len(scenes) - len(sound) > 0
    return sound


def assert_all_have_a_scene(scenes: dict[str, Scene], operations: list[str]) -> None:
    assert [operation for operation in operations if not any(name.startswith(operation) for name in scenes)] == []


def test_what_a_death_leaves_is_recovered_however_often_recovery_dies(program: list[str]) -> None:
    """P1, P2, P5, P7, P8: every boundary of each operation; every boundary of recovery from each state that
    one leaves.
    """
    scenes = stepped(program, "boundaries", 0, 0)
    assert_all_have_a_scene(scenes, OPERATIONS + OF_THE_BELL)
    for name, scene in scenes.items():
        of_the_bell = any(name.startswith(operation) for operation in OF_THE_BELL)
        assert scene.boundaries > 5, name
        assert of_the_bell or scene.in_recovery > scene.states > 1, name


def test_a_killed_process_leaves_what_was_seen_where_it_died(program: list[str]) -> None:
    """P1, P2, P8: really killed, the small operations everywhere and the large ones at some places; then the recovery,
    too.
    """
    scenes = stepped(program, "kills", 2000, 0)
    assert_all_have_a_scene(scenes, OPERATIONS + OF_THE_BELL)
    assert all(scene.kills == scene.boundaries > 1 for scene in scenes.values())
    for prefix in ("ring", "reclaim"):
        assert all(scene.kills > 2 * 4 for scene in stepped(program, "nested", 3, 3, prefix).values())


def test_another_process_comes_between(program: list[str]) -> None:
    """P1, P5, R16: it takes, frees, reclaims, raises or consumes in the middle, and neither loses what it has."""
    assert_all_have_a_scene(
        stepped(program, "rivals", 120, 0),
        [
            *("acquire", "release", "reclaim", "push", "pop", "advance", "open", "write", "bind", "grant", "give back"),
            *("withdraw", "leave", "publish", "retire", "pin"),
        ],
    )


@pytest.mark.parametrize(
    ("prefix", "limit", "least"),
    [("write", 2000, 8), ("bind", 5000, 20), ("grant", 5000, 20), ("withdraw", 5000, 20), ("acquire one", 1 << 12, 20)],
)
def test_another_process_comes_between_at_more_places(
    program: list[str], prefix: str, limit: int, least: int
) -> None:
    """P1, P5, R16: as above."""
    assert all(scene.boundaries > least for scene in stepped(program, "rivals", limit, 0, prefix).values())


@pytest.mark.storm
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("mode", "inner"), [("kills", 0), ("rivals", 0), ("nested", 3)])
def test_everywhere(program: list[str], mode: str, inner: int) -> None:
    """P1, P2, P5, P8: the same with no boundary left out; nested, recovery is walked from each, and killed at some of
    its own.
    """
    stepped(program, mode, 0, inner, limit_s=1700)


@pytest.mark.parametrize("prefix", ["publish", "retire", "pin"])
def test_another_process_changes_the_shelf_meanwhile(program: list[str], prefix: str) -> None:
    """P1, R39 to R49: it publishes, retires, pins and clears in the middle."""
    assert all(scene.boundaries > 20 for scene in stepped(program, "rivals", 2000, 0, prefix).values())
