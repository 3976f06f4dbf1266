"""The screen of `embridge top` as lines of text, for any width."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from rich.text import Text

from embridge.pipeline.cli.figures import count, duration, rate, share_bar, size, size_rate
from embridge.pipeline.cli.layout import CHOSEN, LABEL, TROUBLE, Column, Field, labelled, table, wrapped
from embridge.pipeline.cli.story_lines import request_lines, story_lines
from embridge.pipeline.cli.top_state import KEYS, State

LEAST_ROWS: Final = 3  # of the table, or a third of the screen, before facts are left out for it
MOST_DETAIL: Final = 3
BAR: Final = 22
HINTS: Final = (
    ("q", "quit"), ("enter", "story"), ("s", "sort"), ("/", "filter"), ("n", "node"), ("h", "keys"),
    ("space", "hold"), ("r", "reverse"),
)  # fmt: skip
"""What the last line shows; those that come first are there in a narrow terminal, too."""
ELSEWHERE: Final = (("q", "quit"), ("escape", "back"), ("up down", "more"), ("space", "hold"))
"""The same of the other pages."""
Lines = list[Text]

_COLUMNS: Final = (
    Column("room", lambda it: str(it["room"]), 0),
    Column("phase", lambda it: it["phase"], 2, is_right=False),
    Column("path", lambda it: ",".join(it["paths"]) or "-", 8, is_right=False),
    Column("ready", lambda it: str(it["ready"]), 6),
    Column("granted", lambda it: str(it["granted"]), 7),
    Column("sent", lambda it: str(it["sent"]), 4),
    Column("total", lambda it: str(it["total"] or "?"), 5),
    Column("age", lambda it: duration(it["age_s"]), 1),
    Column("for", lambda it: duration(it["for_s"]), 9),
    Column("waits for", lambda it: who(it), 3, is_right=False),
    Column("why", lambda it: it["why"], 10, is_right=False, least=30),
)
_PROCESSES: Final = (
    Column("process", lambda it: it["name"], 0, is_right=False),
    Column("pid", lambda it: str(it["pid"]), 1),
    Column("silent", lambda it: duration(it["silent_s"]), 2),
    Column("restarts", lambda it: str(it["restarts"]), 3),
    Column("writes", lambda it: rate(it.get("writes_per_s")), 4),
    Column("bytes", lambda it: size_rate(it.get("bytes_per_s")), 5),
)
_CLIENTS: Final = (
    Column("client", lambda it: f"pid {it['pid']}", 0, is_right=False),
    Column("lane", lambda it: str(it["lane"]), 2),
    Column("silent", lambda it: duration(it["silent_s"]), 1),
    Column("waiting", lambda it: str(it["waiting"]), 3),
    Column("lent", lambda it: str(it.get("lent_blocks", "-")), 5),
    Column("unsent", lambda it: size(it.get("unsent_bytes")), 4),
    Column("attached", lambda it: duration(it["attached_s"]), 6),
)
_PEERS: Final = (
    Column("peer", lambda it: it["node"], 0, is_right=False),
    Column("silent", lambda it: duration(it["silent_s"]), 1),
    Column("writers", lambda it: str(it["direct_writers"]), 3),
    Column("address", lambda it: it["bootstrap_addr"], 2, is_right=False),
)
_QUARANTINE: Final = (
    Column("quarantine", lambda it: it["session"], 0, is_right=False),
    Column("blocks", lambda it: str(it["blocks"]), 1),
    Column("ends with", lambda it: it["ends_with"], 2, is_right=False),
)


def who(request: Mapping[str, Any]) -> str:
    """Who owes the next step, in short: a node by its side, a process with its pid."""
    name = str(request["process"])
    if " node" in name:
        return name.partition(" node")[0] + " node"
    return f"{name} {request['pid']}" if request["pid"] else name


def screen(state: State, width: int, height: int) -> Lines:
    """Exactly `height` lines of at most `width` characters."""
    body = wrapped(state.note, width, style=TROUBLE) if state.note else []
    room = max(0, height - len(body) - 1)
    if state.picture is None:
        body += wrapped("looking ...", width)
    elif state.page == "requests":
        body += _requests(state, width, room)
    else:
        body += _scrolled(state, _page(state, width), room)
    lines = [*body[: height - 1], *[Text()] * (height - 1 - len(body)), _footer(state, width)]
    return lines[-height:]


def once(picture: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], width: int) -> Lines:
    """The picture for a file or a pipe: every request with its reason in full."""
    lines = [line for _, fact in facts(picture, width, is_whole=True) for line in fact]
    if rows:
        shown = table(_COLUMNS[:-1], rows, width)
        lines += [Text(), shown.heading]
        for row, text in zip(rows, shown.rows, strict=True):
            lines += [text, *wrapped(row["why"], width, indent=4, is_whole=True)]
    return lines


# ---- the node


def facts(picture: Mapping[str, Any], width: int, *, is_whole: bool = False) -> list[tuple[int, Lines]]:
    """What is to be said of the node, each with how soon it may be left out: 0 never, and the highest first.
    `is_whole` as of `layout.wrapped`.
    """
    said: list[tuple[int, str, Iterable[Field | str]]] = [
        (1, "requests", _in_flight(picture["requests"])),
        (0, "rates", _rates(picture["rates"])),
        (4, "rows", _watermarks(picture["watermarks"])),
        (0, "pool", _pool(picture)),
        (2, "oldest", _oldest(picture["requests"]["oldest"])),
        (3, "ended", _ended(picture["ended"])),
        (5, "workers", _workers(picture)),
        (0, "trouble", _troubles(picture)),
    ]
    rest = ((soon, label, list(told)) for soon, label, told in said)
    lines = ((soon, labelled(label, told, width, is_whole=is_whole)) for soon, label, told in rest if told)
    return [(0, _title(picture, width)), *lines]


def _title(picture: Mapping[str, Any], width: int) -> Lines:
    health = picture["health"]
    told = [
        Field(f"{picture['role']} {picture['node_id']}", LABEL),
        picture["state"],
        Field(health, "" if health == "ok" else TROUBLE),
        f"up {duration(picture['up_s'])}",
        f"{picture['requests']['in_flight']} in flight",
    ]
    return labelled("node", told, width)


def _in_flight(requests: Mapping[str, Any]) -> Iterable[Field | str]:
    yield from (f"{name} {number}" for name, number in requests["phases"].items() if number)
    yield from (f"{path} {number}" for path, number in requests["paths"].items() if number)
    if waiting := requests["waiting_for_a_slot"]:
        yield Field(f"{waiting} wait for a slot", TROUBLE)


def _rates(rates: Mapping[str, Any] | None) -> Iterable[Field | str]:
    if rates is None:
        yield "known after the next look"
        return
    yield Field(f"{count(rates['requests_per_s'])} requests/s", LABEL)
    yield Field(size_rate(rates["bytes_per_s"]), LABEL)
    if rates["failed_per_s"]:
        yield Field(f"{rate(rates['failed_per_s'])} failed", TROUBLE)
    for path, of in rates["paths"].items():
        if of["requests_per_s"]:
            yield f"{path} {rate(of['requests_per_s'])} {size_rate(of['bytes_per_s'])}"


def _watermarks(rows: Mapping[str, int]) -> Iterable[str]:
    if any(rows.values()):
        yield from (f"{name} {count(rows[name])}" for name in ("ready", "granted", "sent"))
        if rows["total"] >= rows["ready"]:  # else the length of many is not known
            yield f"of {count(rows['total'])}"


def _pool(picture: Mapping[str, Any]) -> Iterable[Field | str]:
    pool = picture["pool"]
    used = pool["blocks"] - pool["free"]
    yield f"{share_bar(pool['used'], BAR)} {used} of {pool['blocks']} blocks"
    if pool["quarantined"]:
        yield Field(f"{pool['quarantined']} quarantined", TROUBLE)
    if pool["lent"]:
        yield f"{pool['lent']} lent"
    if picture["role"] == "language":
        yield f"claims held {picture['claims_held']}"
    if pool["unsent_bytes"]:
        yield f"{size(pool['unsent_bytes'])} unsent"


def _oldest(oldest: Mapping[str, Any] | None) -> Iterable[str]:
    if oldest is not None:
        yield f"room {oldest['room']}"
        yield f"{oldest['phase']} for {duration(oldest['age_s'])}"
        yield f"waits for {who(oldest)}"


def _ended(ended: Mapping[str, Any]) -> Iterable[Field | str]:
    yield f"{count(ended['succeeded'])} succeeded"
    failed = ended["failed"]
    yield f"{count(sum(failed.values()))} failed"
    for code, number in sorted(failed.items(), key=lambda it: -it[1]):
        yield Field(f"{code} {count(number)}", TROUBLE)


def _workers(picture: Mapping[str, Any]) -> Iterable[Field | str]:
    clients, peers = picture["clients"], picture["peers"]
    for it in picture["processes"]:
        if not it["name"].startswith("worker"):
            continue
        moves = f" {size_rate(it['bytes_per_s'])}" if it["bytes_per_s"] else ""
        yield Field(f"{it['name']}{moves}", TROUBLE if it["trouble"] else "")
    yield _counted(len(clients), "client")
    yield _counted(len(peers), "peer")
    if silent := sum(peer["is_silent"] for peer in peers):
        yield Field(f"{silent} silent", TROUBLE)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _troubles(picture: Mapping[str, Any]) -> Iterable[Field]:
    if picture["note"]:
        yield Field(picture["note"], TROUBLE)
    for it in (*picture["processes"], *picture["clients"]):
        if it["trouble"]:
            yield Field(f"{it.get('name', 'client')} pid {it['pid']}: {it['trouble']}", TROUBLE)


# ---- the requests


def _requests(state: State, width: int, height: int) -> Lines:
    assert state.picture is not None
    shown = table(_COLUMNS, state.rows, width - 1)
    detail = _detail(state, width)
    least = min(len(state.rows), max(LEAST_ROWS, height // 3)) + 1 + len(detail)
    told = _fitting(facts(state.picture, width), height - least)
    room = height - len(told) - len(detail) - 1
    lines = [*told, Text(" ", no_wrap=True).append_text(shown.heading)]
    if not state.rows:
        why = "no request in flight" if not state.words else f"no request in flight with {state.words!r}"
        return [*told, *wrapped(why, width)]
    place = state.place
    state.first_row = _first(state.first_row, place or 0, room, len(state.rows))
    for i, row in enumerate(shown.rows[state.first_row : state.first_row + room], state.first_row):
        is_chosen = i == place
        line = Text(">" if is_chosen else " ", no_wrap=True).append_text(row)
        if is_chosen:
            line = Text(line.plain.ljust(width), style=CHOSEN, no_wrap=True)
        elif state.rows[i]["phase"] == "Failed":
            line.stylize(TROUBLE)
        lines.append(line)
    lines += [Text()] * (height - len(lines) - len(detail))
    return [*lines, *detail]


def _detail(state: State, width: int) -> Lines:
    """Why the chosen request does not move, in full where that takes few lines; its story has all of it."""
    request = state.request
    if request is None:
        return []
    lines = wrapped(f"room {request['room']} waits for {request['waits_for']}: {request['why']}", width)
    if len(lines) <= MOST_DETAIL:
        return lines
    return [*lines[: MOST_DETAIL - 1], Text("(enter: the rest)", no_wrap=True)]


def _fitting(told: list[tuple[int, Lines]], height: int) -> Lines:
    """As many facts as fit, those that may be left out last."""
    kept = list(told)
    while sum(len(lines) for _, lines in kept) > height and any(soon for soon, _ in kept):
        kept.remove(max(kept, key=lambda it: it[0]))
    return [line for _, lines in kept for line in lines]


def _first(first: int, place: int, room: int, count: int) -> int:
    """The first row to show, so that the chosen one is seen."""
    room = max(1, room)
    first = min(max(first, place - room + 1), place)
    return max(0, min(first, count - room))


# ---- pages of text


def _page(state: State, width: int) -> Lines:
    assert state.picture is not None
    if state.page == "help":
        return [line for key, what in KEYS for line in labelled(key, [what], width)]
    return _story(state, width) if state.page == "story" else _node(state.picture, width)


def _story(state: State, width: int) -> Lines:
    request = state.request
    if state.story is None:
        return wrapped("its slot has another request by now" if request is None else "looking ...", width)
    lines = story_lines(state.story, width)
    return [*lines, Text(), *request_lines(request, width)] if request is not None else lines


def _node(picture: Mapping[str, Any], width: int) -> Lines:
    pool = picture["pool"]
    blocks = [f"{pool[name]} {name}" for name in ("free", "owned", "exposed", "quarantined", "lent")]
    lines = [*_title(picture, width), *labelled("blocks", blocks, width)]
    if troubles := list(_troubles(picture)):
        lines += labelled("trouble", troubles, width)
    groups = {"processes": _PROCESSES, "clients": _CLIENTS, "peers": _PEERS, "quarantine": _QUARANTINE}
    for key, columns in groups.items():
        if picture[key]:
            shown = table(columns, picture[key], width)
            lines += [Text(), shown.heading, *shown.rows]
    return lines


def _scrolled(state: State, lines: Lines, height: int) -> Lines:
    state.first_line = max(0, min(state.first_line, len(lines) - height))
    return lines[state.first_line : state.first_line + height]


def _footer(state: State, width: int) -> Text:
    if state.is_typing:
        return Text(f"filter: {state.words}_"[-width:], style=LABEL, no_wrap=True)
    marks = [f"sort: {state.order}{' reversed' if state.is_reversed else ''}"] if state.page == "requests" else []
    marks += [f"filter: {state.words}"] if state.words else []
    marks += ["HELD"] if state.is_held else []
    right = ("  ".join(marks))[:width]
    line = Text(no_wrap=True)
    for key, what in HINTS if state.page == "requests" else ELSEWHERE:
        hint = f"{key} {what}"
        if len(line.plain) + len(hint) + 2 + len(right) > width:
            break
        line.append(key, style=LABEL).append(f" {what}  ")
    return line.append(" " * (width - len(line.plain) - len(right))).append(right)
