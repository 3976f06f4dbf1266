"""Paths and addresses in what commands print: they stay whole, for who copies them, however narrow the terminal is."""

from __future__ import annotations

from io import StringIO
from typing import Any, Final

import pytest
from rich.console import Console
from rich.screen import Screen

from embridge.pipeline.cli import output, trace
from embridge.pipeline.cli.layout import labelled
from embridge.pipeline.cli.status import _show
from embridge.pipeline.cli.story_lines import story_lines
from embridge.workers.checks import Check

LONG: Final = "/run/" + "user/of-this-host/" * 6 + "embridge-encode"
ADDRESS: Final = "tcp://encoder-17.some.cluster.local:50001"
STORY: Final[dict[str, Any]] = {
    "room": 5, "slot": 7, "epoch": 1, "phase": "Failed", "has_ended": True, "took_s": 1.0, "failure": "refused",
    "reason": f"the socket {LONG} is gone", "stages": [], "total": 4, "ready": 0, "granted": 0, "sent": 0,
    "rounds": 0, "paths": [], "others": [f"encode {ADDRESS}"], "waits_for": "", "why": "",
}  # fmt: skip


class Printed:
    """What commands print on a terminal of this width."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
        self._file = StringIO()
        monkeypatch.setattr(output, "console", lambda: Console(width=width, file=self._file))

    @property
    def lines(self) -> list[str]:
        return self._file.getvalue().splitlines()


@pytest.mark.parametrize("width", [30, 80, 200])
def test_a_check_keeps_its_paths_whole(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    printed = Printed(monkeypatch, width)
    core = Check("native core", "ok", "/opt/some/where/embridge/allocator/_core.abi3.so of release 1")
    key = Check("keys", "fail", f"{LONG}: mode 0644", f"chmod 600 {LONG}, or one that others cannot read")
    assert not output.show_checks([core, key], as_json=False)
    for word in ("/opt/some/where/embridge/allocator/_core.abi3.so", f"{LONG}:", f"{LONG},"):
        assert any(word in line.split() for line in printed.lines), word
    is_one_line = [len(line) <= width or len(line.split()) == 1 for line in printed.lines]
    assert all(is_one_line)
    told = " ".join(word for line in printed.lines for word in line.split())
    assert f"native core ok {core.seen} keys FAIL {key.seen} -> {key.advice}" in told


@pytest.mark.parametrize("width", [30, 80, 200])
def test_a_status_keeps_its_paths_whole(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    printed = Printed(monkeypatch, width)
    peer = {"node": "3c53c90fd68879df", "bootstrap_addr": ADDRESS, "trouble": "none", "poller_addr": ADDRESS}
    _show({"run_dir": LONG, "role": "encode", "peers": [peer, peer]}, as_json=False)
    words = [word for line in printed.lines for word in line.split()]
    assert words.count(LONG) == 1
    assert words.count(ADDRESS) == 4


def test_a_screen_that_shows_a_status_breaks_what_it_has_no_room_for() -> None:
    from rich.console import Group

    from embridge.pipeline.cli.status import render

    console = Console(width=60, height=20, file=StringIO(), force_terminal=True, no_color=True)
    console.set_alt_screen(True)
    lines = console.render_lines(Screen(Group(*render({"run_dir": LONG}))))
    assert LONG in "".join("".join(segment.text for line in lines for segment in line).split())


def test_a_story_keeps_its_paths_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    printed = Printed(monkeypatch, 40)
    story = type("Story", (), {"told": lambda self: STORY})()
    node = type("Node", (), {"name": "encode 1", "stories": [story]})()
    trace._show([node])
    words = [word for line in printed.lines for word in line.split()]
    assert LONG in words
    assert ADDRESS in words
    assert max(line.cell_len for line in story_lines(STORY, 40)) <= 40  # of `top`


def test_what_is_longer_than_a_line_has_a_line_of_its_own() -> None:
    lines = labelled("label", ["one", f"at {ADDRESS} or near"], 40, is_whole=True)
    assert [line.plain for line in lines] == ["label     one", "          at", ADDRESS, "          or near"]
