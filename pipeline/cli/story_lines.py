"""The story of one request as lines of text, for `embridge trace` and `embridge top`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from rich.text import Text

from embridge.pipeline.cli.figures import duration
from embridge.pipeline.cli.layout import LABEL, TROUBLE, Field, clean, labelled, wrapped

LEAST_BAR: Final = 10
MOST_BAR: Final = 50


def story_lines(story: Mapping[str, Any], width: int, *, seen_at: str = "", is_whole: bool = False) -> list[Text]:
    """A story as `Story.told` has it; `seen_at` says of which node. `is_whole` as of `layout.wrapped`."""
    where = [seen_at] if seen_at else []

    def said(label: str, *fields: Field | str) -> list[Text]:
        return labelled(label, fields, width, is_whole=is_whole)

    lines = said(f"room {story['room']}", _how(story), *where, f"slot {story['slot']}, epoch {story['epoch']}")
    lines += _stages(story, width)
    lines += said("rows", *_rows(story))
    lines += said("path", ", ".join(story["paths"]) or "not known yet", *_others(story))
    if story["failure"]:
        lines += said("failed", Field(f"{story['failure']}: {story['reason']}", TROUBLE))
    if story["waits_for"]:
        lines += said("waits for", story["waits_for"], f"for {duration(story['waits_s'])}")
        lines += wrapped(story["why"], width, indent=2, is_whole=is_whole)
    return lines


def request_lines(request: Mapping[str, Any], width: int) -> list[Text]:
    """What else a node knows of a request in flight, as its status has it."""
    lines = labelled(
        "process",
        [
            f"client pid {request['client']}",
            f"next step: {request['process']}" + (f" pid {request['pid']}" if request["pid"] else ""),
            f"rule: {request['line']}",
        ],
        width,
    )
    lines += labelled(
        "deadline", [f"in {duration(request['deadline_in_s'])}", f"moved {duration(request['moved_s_ago'])} ago"], width
    )
    for it in request.get("destinations", ()):
        marks = [f"{name} {it[name]}" for name in ("granted", "staged", "issued", "sent")]
        closed = ["closed"] if it["closed"] else []
        trouble = [Field(it["trouble"], TROUBLE)] if it["trouble"] else []
        lines += labelled("to", [it["node"], *marks, f"written by {it['written_by']}", *closed, *trouble], width)
    if "blocks" in request:
        blocks = [f"{count} {name.replace('_', ' ')}" for name, count in request["blocks"].items()]
        holder = f" by pid {request['claim_holder']}" if request["claim_holder"] else ""
        lines += labelled("blocks", [*blocks, f"claim {request['claim']}{holder}"], width)
    return lines


def _how(story: Mapping[str, Any]) -> Field:
    if not story["has_ended"]:
        return Field(f"{story['phase']}, open for {duration(story['took_s'])}")
    return Field(f"{story['phase']} after {duration(story['took_s'])}", TROUBLE if story["failure"] else "")


def _rows(story: Mapping[str, Any]) -> Sequence[str]:
    total = story["total"] or "an unknown number"
    marks = [f"{name} {story[name]}" for name in ("ready", "granted", "sent")]
    rounds = story["rounds"]
    return [*marks, f"of {total}", *([f"in {rounds} round{'s' * (rounds != 1)}"] if rounds else [])]


def _others(story: Mapping[str, Any]) -> list[str]:
    return [f"{'from' if other.startswith('encode') else 'to'} {other}" for other in story["others"]]


def _stages(story: Mapping[str, Any], width: int) -> list[Text]:
    """One line a phase, with where it lies in the whole time."""
    stages, took = story["stages"], story["took_s"]
    if not stages:
        return wrapped("no phase of it was stamped", width, indent=2)
    lines = []
    names = max(len(stage["phase"]) for stage in stages)
    for stage in stages:
        lasts = "+" if stage["lasts"] else " "
        text = f"  {stage['phase']:<{names}} at {duration(stage['at_s']):>6} for {duration(stage['for_s']):>6}{lasts}"
        room = min(MOST_BAR, width - len(text) - 1)
        bar = f" {_place(stage, took, room)}" if room >= LEAST_BAR else ""
        lines.append(Text(clean(text) + bar, no_wrap=True))
    if story["has_ended"]:
        end = f"  {story['phase']:<{names}} at {duration(took):>6}"
        lines.append(Text(end, style=TROUBLE if story["failure"] else LABEL, no_wrap=True))
    return lines


def _place(stage: Mapping[str, Any], took_s: float, room: int) -> str:
    """`|..####...|`: when in the whole time the phase was."""
    inner = room - 2
    begin = min(inner - 1, int(stage["at_s"] / took_s * inner)) if took_s > 0 else 0
    end = round((stage["at_s"] + stage["for_s"]) / took_s * inner) if took_s > 0 else inner
    filled = max(1, min(inner, end) - begin)
    return f"|{'.' * begin}{'#' * filled}{'.' * (inner - begin - filled)}|"
