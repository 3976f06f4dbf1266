"""`embridge top`: a node in a terminal, live: its rates, its memory, and which requests do not move, and why.

It reads shared memory, as `embridge status` does, and disturbs nobody.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from embridge.pipeline.cli.errors import QuestionError, expected_errors, no_node_is_status_3
from embridge.pipeline.cli.options import node_options, run_dir_of

if TYPE_CHECKING:
    from rich.console import Console

    from embridge.pipeline.cli.top_state import State
    from embridge.pipeline.inspection.picture import Sample


@click.command("top", short_help="Watch a running node in a terminal: rates, memory, and what waits.")
@node_options
@click.option(
    "--interval",
    "interval_s",
    type=click.FloatRange(min=0.1),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="How often to look; rates are those of this time.",
)
@click.option("--once", is_flag=True, help="Print one picture, and end.")
@click.option("--json", "as_json", is_flag=True, help="Print one picture as JSON, and end.")
def command(run_dir: Path | None, role: str | None, interval_s: float, once: bool, as_json: bool) -> None:
    """Watch a running node in a terminal: rates, memory, and what waits.

    For each request it says who owes its next step. Enter opens the story of a request, n the node, h lists all keys,
    q quits. One picture (--once, --json) takes two looks, --interval apart, for its rates.
    """
    with expected_errors():
        path = run_dir_of(run_dir, role)
        if once or as_json:
            _print_one(path, interval_s, as_json=as_json)
        else:
            _watch(path, interval_s)


def _sample(path: Path) -> Sample:
    """Raises AttachError or SegmentError: no node runs there, or it cannot be reached."""
    from embridge.pipeline.inspection.node_status import node_status
    from embridge.pipeline.inspection.picture import Sample

    return Sample(time.monotonic_ns(), node_status(path))


def _print_one(path: Path, interval_s: float, *, as_json: bool) -> None:
    from embridge.pipeline.cli.output import console
    from embridge.pipeline.cli.top_view import once
    from embridge.pipeline.inspection.picture import chosen, picture

    with no_node_is_status_3():
        before = _sample(path)
        time.sleep(interval_s)
        shown = picture(_sample(path), before)
    if as_json:
        click.echo(json.dumps(shown, indent=2))
        return
    screen = console()
    for line in once(shown, chosen(shown["in_flight"]), screen.width):
        screen.print(line, soft_wrap=True)


def _watch(path: Path, interval_s: float) -> None:
    """Until `q` or Ctrl-C, also through restarts of the node."""
    from embridge.pipeline.cli.output import console
    from embridge.pipeline.cli.terminal import Terminal
    from embridge.pipeline.cli.top_state import State

    screen = console()
    if why := Terminal.why_not(screen):
        raise QuestionError(f"{why}; --once prints one picture, and --json one for programs")
    with no_node_is_status_3():
        first = _sample(path)
    try:
        _live(screen, path, interval_s, first, State())
    except KeyboardInterrupt:
        return


def _live(screen: Console, path: Path, interval_s: float, sample: Sample | None, state: State) -> None:
    from embridge.pipeline.cli.terminal import Terminal
    from embridge.pipeline.cli.top_view import screen as lines_of
    from embridge.pipeline.inspection.picture import picture

    before: Sample | None = None
    with Terminal(screen) as terminal:
        while not state.wants_end:
            if sample is not None:
                state.show(picture(sample, before))
            _look_at_story(path, state)
            due = time.monotonic() + interval_s
            while not state.wants_end:
                terminal.draw(lines_of(state, *terminal.size))
                if (left := due - time.monotonic()) <= 0:
                    break
                for key in terminal.keys(left):
                    state.press(key)
                    if state.page == "story" and state.story is None:
                        _look_at_story(path, state)
            before = sample or before
            sample = None if state.wants_end else _next(path, state)


def _next(path: Path, state: State) -> Sample | None:
    """The next look; where the node does not answer, `state` says so, and the last picture stays."""
    from embridge.allocator.errors import EmbridgeError

    try:
        sample = _sample(path)
    except EmbridgeError as error:
        state.note = " ".join(str(error).split())
        return None
    state.note = ""
    return sample


def _look_at_story(path: Path, state: State) -> None:
    """Tell the story of the chosen request anew; it stays as it was once its slot has another request."""
    from embridge.allocator.errors import EmbridgeError
    from embridge.pipeline.inspection.stories import node_story

    if state.page != "story" or state.chosen is None or state.is_held:
        return
    try:
        story = node_story(path, *state.chosen)
    except EmbridgeError:
        return
    if story is not None:
        state.story = story.told()
