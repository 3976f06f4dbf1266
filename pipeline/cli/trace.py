"""`embridge trace`: when a request entered its phases, and what it waits for, also after its end."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from embridge.pipeline.cli.errors import CommandError, QuestionError, expected_errors, no_node_is_status_3
from embridge.pipeline.cli.options import run_dirs_of

if TYPE_CHECKING:
    from embridge.pipeline.inspection.stories import NodeStories


@click.command("trace", short_help="Show when a request entered its phases, and what it waits for.")
@click.argument("room", type=int, required=False)
@click.option("--slowest", type=click.IntRange(min=1), metavar="N", help="The N that took longest, of each node.")
@click.option("--failed", "only_failed", is_flag=True, help="Only requests that have failed.")
@click.option(
    "--chrome",
    "chrome_path",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write them there as a Chrome trace, for https://ui.perfetto.dev; - is standard output.",
)
@click.option("--json", "as_json", is_flag=True, help="Print them as JSON.")
@click.option(
    "--run-dir",
    "run_dirs",
    type=click.Path(path_type=Path),
    multiple=True,
    help="A node's run directory; once for each node. Default: that of the role, or of every node that runs "
    "in a default one.",
)
@click.option("--role", type=click.Choice(["encode", "language"]), help="Which of the two default run directories.")
def command(
    room: int | None,
    slowest: int | None,
    only_failed: bool,
    chrome_path: Path | None,
    as_json: bool,
    run_dirs: Sequence[Path],
    role: str | None,
) -> None:
    """Show when a request entered its phases, and what it waits for: that of a ROOM, or the slowest ones.

    A node tells of requests in flight, and of those that have ended as long as their slots were not used again: of the
    last dozens, mostly. Nodes of this host are shown together, with one clock.

    \b
      embridge trace 17                            # both sides of room 17
      embridge trace --slowest 5
      embridge trace --slowest 100 --chrome t.json # then open t.json in https://ui.perfetto.dev
    """
    with expected_errors():
        if (room is None) == (slowest is None):
            raise QuestionError("which request? say its room, or --slowest N")
        with no_node_is_status_3():
            nodes = [_of_node(path, room, slowest, only_failed=only_failed) for path in run_dirs_of(run_dirs, role)]
        found = [node for node in nodes if node.stories]
        if not found and room is not None:
            names = " and ".join(node.name for node in nodes)
            raise QuestionError(
                f"room {room}: {names} know of no such request; it was not opened here, or has ended, and its slot "
                "has another request since"
            )
        if chrome_path is not None:
            _write_chrome(found, chrome_path)
        if as_json:
            click.echo(json.dumps([_told(node) for node in nodes], indent=2))
        elif chrome_path is None:
            _show(found)


def _of_node(path: Path, room: int | None, slowest: int | None, *, only_failed: bool) -> NodeStories:
    from embridge.pipeline.inspection.stories import node_stories

    node = node_stories(path)
    found = [it for it in node.stories if (room is None or it.room == room) and (it.failure or not only_failed)]
    if slowest is not None:
        found = sorted(found, key=lambda it: -it.took_ns)[:slowest]
    return node._replace(stories=found)


def _told(node: NodeStories) -> dict[str, Any]:
    return {"role": node.role, "node_id": node.node_id, "requests": [story.told() for story in node.stories]}


def _show(nodes: Sequence[NodeStories]) -> None:
    from embridge.pipeline.cli.output import console
    from embridge.pipeline.cli.story_lines import story_lines

    screen = console()
    for node in nodes:
        for story in node.stories:
            for line in story_lines(story.told(), screen.width, seen_at=node.name, is_whole=True):
                screen.print(line, soft_wrap=True)
            screen.print()
    if not nodes:
        screen.print("no request to tell of")


def _write_chrome(nodes: Sequence[NodeStories], path: Path) -> None:
    from embridge.pipeline.cli.chrome_trace import chrome_trace

    text = json.dumps(chrome_trace(nodes))
    if str(path) == "-":
        click.echo(text)
        return
    try:
        path.write_text(text)
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}") from error
    requests = sum(len(node.stories) for node in nodes)
    click.echo(f"{path}: {requests} request{'s' * (requests != 1)}; https://ui.perfetto.dev opens it", err=True)
