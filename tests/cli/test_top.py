"""`embridge top`: its screen out of a control segment that is made by hand, and what its keys do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.by_hand import NOW_NS, RequestsByHand, by_hand, seen

from embridge.allocator import ends
from embridge.allocator.errors import FailureCode
from embridge.allocator.geometry import Role
from embridge.allocator.records import NodeState, Process, SegmentHeader, Slot
from embridge.allocator.status import Phase
from embridge.pipeline.cli.figures import count, duration, share_bar, size
from embridge.pipeline.cli.layout import clean, labelled
from embridge.pipeline.cli.terminal import keys_of
from embridge.pipeline.cli.top_state import State
from embridge.pipeline.cli.top_view import facts, once, screen
from embridge.pipeline.inspection.picture import ORDERS, Sample, chosen, picture
from embridge.workers.process_spec import READY
from embridge.workers.timing import NS

ADDRESS = "tcp://encoder-17.some.cluster.local:50001"
SIZES = [(80, 24), (40, 24), (200, 60), (80, 10), (40, 5)]


@pytest.fixture
def hand(tmp_path: Path) -> RequestsByHand:
    """A language node of nine blocks: rooms 1 to 3, which wait, and one that moves with a number of 19 digits."""
    hand = RequestsByHand(by_hand(tmp_path))
    for name in hand.control.processes.names:
        hand.control.processes.set(name, Process.BEAT_NS, NOW_NS)
        hand.control.processes.set(name, Process.STATE, READY)
    hand.control.header.store(SegmentHeader.NODE_STATE, NodeState.READY)
    for room in (1, 2, 3):
        hand.open(room, opened_s=90 + room, address=ADDRESS)
    moving = hand.open(1 << 62, opened_s=80)
    hand.control.slots.set(moving[0], Slot.TOTAL, 2000)
    hand.enter(moving, Phase.WaitingForInput, 81)
    hand.enter(moving, Phase.Transferring, 82, 1024)
    assert len(hand.control.blocks.acquire(moving[0], moving[1], 8, may_take_reserve=False)) == 8
    return hand


def pictured(hand: RequestsByHand, before: Sample | None = None) -> dict[str, Any]:
    return picture(Sample(NOW_NS, seen(hand.control)), before)


def shown(hand: RequestsByHand, *keys: str) -> State:
    state = State()
    state.show(pictured(hand))
    for key in keys:
        state.press(key)
    return state


def text_of(state: State, width: int = 80, height: int = 24) -> str:
    return "\n".join(line.plain.rstrip() for line in screen(state, width, height))


def rooms_of(state: State) -> list[int]:
    return [row["room"] for row in state.rows]


# ---- what is shown


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("keys", [(), ("n",), ("h",), ("enter",), ("/",)])
def test_every_page_fills_the_terminal_and_no_more(
    hand: RequestsByHand, keys: tuple[str, ...], width: int, height: int
) -> None:
    lines = screen(shown(hand, *keys), width, height)
    assert len(lines) == height
    assert max(line.cell_len for line in lines) <= width
    assert all(line.plain.isascii() and line.plain.isprintable() for line in lines)


def test_at_80_by_24_an_operator_sees_the_node_and_every_request_with_who_owes_its_next_step(
    hand: RequestsByHand,
) -> None:
    text = text_of(shown(hand))
    for said in (
        "node      language 1  READY",
        "4 in flight",
        "Bootstrapping 3  Transferring 1  shm 1",
        "[##################..] 8 of 9 blocks  claims held 0",
        f"room {1 << 62}  Transferring for 20s",
        "sent 1024  of 2000",
        "0 succeeded  0 failed",
        "worker0  worker1",
        "1 client  0 peers",
    ):
        assert said in text, said
    table = [line for line in text.splitlines() if line[:1] in " >" and line.split()]
    assert table[0].split() == [
        *("room", "phase", "path", "ready", "granted", "sent", "total", "age", "waits", "for")
    ]
    assert [line.split()[-3:] for line in table[2:5]] == [[age, "encode", "node"] for age in ("9s", "8s", "7s")]
    assert f">{1 << 62} Transferring" in text
    assert "sort: age" in text.splitlines()[-1]


@pytest.mark.parametrize("width", [40, 80])
def test_why_the_chosen_request_does_not_move_is_there_in_full(hand: RequestsByHand, width: int) -> None:
    state = shown(hand, "down")
    assert state.request is not None
    assert state.request["room"] == 1
    said = f"room 1 waits for {state.request['waits_for']}: {state.request['why']}"
    text = "".join(text_of(state, width, 30).split())
    assert "".join(said.split()) in text or "(enter:therest)" in text
    state.press("enter")
    state.story = None
    assert "looking" in text_of(state, width)


def test_one_picture_for_a_pipe_has_every_request_with_its_reason(hand: RequestsByHand) -> None:
    data = pictured(hand)
    for width in (40, 150):
        lines = once(data, chosen(data["in_flight"]), width)
        assert max(line.cell_len for line in lines) <= width
        text = "".join("".join(line.plain for line in lines).split())
        for request in data["in_flight"]:
            assert "".join(request["why"].split()) in text


def test_rates_are_those_between_two_looks(hand: RequestsByHand) -> None:
    """By what has ended, and what has moved of requests on their way."""
    before = Sample(NOW_NS - 2 * NS, seen(hand.control))
    request = hand.open(5, opened_s=97, TOTAL=200)
    hand.enter(request, Phase.Transferring, 98, 100)
    hand.enter(request, Phase.Success, 99, 200)
    assert hand.control.ends.succeeded(ends.Counter.POLLER, *request, ends.Path.DIRECT, 1)
    hand.control.ends.failed(ends.Counter.POLLER, FailureCode.TIMEOUT)
    hand.release(request)
    (moving,) = (row for row in before.status["requests"] if row["room"] == 1 << 62)
    hand.enter((moving["slot"], moving["epoch"]), Phase.Transferring, 99, 1124)
    rates = pictured(hand, before)["rates"]
    token_bytes = hand.control.geometry.token_bytes
    assert (rates["over_s"], rates["requests_per_s"], rates["failed_per_s"]) == (2.0, 0.5, 0.5)
    assert (rates["tokens_per_s"], rates["bytes_per_s"]) == (150.0, 150.0 * token_bytes)
    assert rates["paths"]["direct"] == {"requests_per_s": 0.5, "bytes_per_s": 100.0 * token_bytes}
    state = State()
    state.show(pictured(hand, before))
    assert "0.5 requests/s" in text_of(state)
    assert "timeout 1" in text_of(state)


def test_a_node_that_was_launched_anew_has_no_rates_across_that(hand: RequestsByHand) -> None:
    before = seen(hand.control)
    data = pictured(hand, Sample(0, {**before, "incarnation": before["incarnation"] - 1}))
    assert data["rates"] is None
    state = State()
    state.show(data)
    assert "known after the next look" in text_of(state)


def test_what_is_in_trouble_is_named_in_any_size(hand: RequestsByHand) -> None:
    hand.control.processes.set("worker1", Process.BEAT_NS, NOW_NS - 12 * NS)
    for width, height in SIZES[:4]:
        text = " ".join(text_of(shown(hand), width, height).split())
        assert "worker1 pid 0: its last beat was 12.0 s ago" in text
    narrow = facts(pictured(hand), 40)
    assert {soon for soon, _ in narrow} >= {0, 1, 2, 3}


def test_an_encode_node_shows_what_waits_in_its_host_memory(tmp_path: Path) -> None:
    hand = RequestsByHand(by_hand(tmp_path, Role.ENCODE))
    hand.open(7, opened_s=99, TOTAL=100, READY=50)
    hand.control.lanes.add_unsent(0, 5_000_000)
    text = text_of(shown(hand))
    assert "node      encode 1" in text
    assert "5 MB unsent" in text
    assert "claims" not in text


def test_what_others_say_cannot_command_the_terminal(hand: RequestsByHand) -> None:
    """A reason comes from another node."""
    slot, epoch = hand.open(6, opened_s=70)
    hand.control.slots.claim_failure(slot, FailureCode.ABORTED, "\x1b]0;owned\x07 bad\nnews \x9b2J")
    hand.enter((slot, epoch), Phase.Failed, 99)
    for line in [*screen(shown(hand), 160, 40), *once(pictured(hand), pictured(hand)["in_flight"], 160)]:
        assert line.plain.isprintable()
    assert clean("a\x1b[1m\nb\x9b") == "a?[1m b?"


def test_nothing_in_flight_and_no_node_are_said(tmp_path: Path) -> None:
    state = State()
    assert "looking" in text_of(state)
    state.show(pictured(RequestsByHand(by_hand(tmp_path))))
    assert "no request in flight" in text_of(state)
    state.note = "no node runs there"
    assert "no node runs there" in text_of(state)


# ---- the keys


def test_the_chosen_request_stays_chosen_wherever_it_stands(hand: RequestsByHand) -> None:
    state = shown(hand, "down", "down")
    assert rooms_of(state) == [1 << 62, 1, 2, 3]
    assert state.request is not None
    assert state.request["room"] == 2
    state.press("r")
    assert rooms_of(state) == [3, 2, 1, 1 << 62]
    assert state.place == 1
    hand.release(state.chosen)  # type: ignore[arg-type]
    state.show(pictured(hand))
    assert state.request["room"] == 1
    for key, place in (("end", 2), ("down", 2), ("home", 0), ("up", 0), ("page down", 2), ("k", 1), ("j", 2)):
        state.press(key)
        assert state.place == place, key


def test_s_goes_through_all_orders(hand: RequestsByHand) -> None:
    state, seen_orders = shown(hand), []
    for _ in ORDERS:
        seen_orders.append((state.order, rooms_of(state)))
        state.press("s")
    assert [order for order, _ in seen_orders] == list(ORDERS)
    orders = dict(seen_orders)
    assert orders["room"] == [1, 2, 3, 1 << 62]
    assert orders["phase"] == [1, 2, 3, 1 << 62]
    assert orders["sent"][0] == orders["total"][0] == 1 << 62
    assert state.order == ORDERS[0]


def test_a_filter_keeps_requests_with_all_of_its_words(hand: RequestsByHand) -> None:
    state = shown(hand, "/", *"encode BOOTX", "backspace", *"strapping")
    assert state.words == "encode BOOTstrapping"
    assert rooms_of(state) == [1, 2, 3]
    assert "filter: encode BOOTstrapping_" in text_of(state)
    state.press("enter")
    state.press("s")  # a command again
    assert (state.order, state.words) == (ORDERS[1], "encode BOOTstrapping")
    state.press("escape")
    assert len(state.rows) == 4
    for words, rooms in (("shm", [1 << 62]), ("transf", [1 << 62]), ("xyz", [])):
        state = shown(hand, "/", *words, "enter")
        assert rooms_of(state) == rooms, words
    assert "no request in flight with 'xyz'" in text_of(state)


def test_a_held_picture_stays_as_it_is(hand: RequestsByHand) -> None:
    state = shown(hand, " ")
    hand.open(8, opened_s=99)
    state.show(pictured(hand))
    assert len(state.rows) == 4
    assert "HELD" in text_of(state)
    state.press(" ")
    state.show(pictured(hand))
    assert len(state.rows) == 5


def test_pages_are_turned_to_and_back(hand: RequestsByHand) -> None:
    state = shown(hand)
    for key, page in (("n", "node"), ("n", "requests"), ("h", "help"), ("escape", "requests"), ("?", "help")):
        state.press(key)
        assert state.page == page
    state.press("left")
    state.press("enter")
    assert state.page == "story"
    state.press("enter")
    assert state.page == "requests"
    assert not state.wants_end
    state.press("q")
    assert state.wants_end


def test_a_page_that_is_longer_than_the_terminal_is_scrolled_to_its_end_and_no_further(hand: RequestsByHand) -> None:
    state = shown(hand, "n", *["page down"] * 9)
    last = text_of(state, 80, 8).splitlines()[:-1]
    assert last[-1].split()[0] == "pid"  # the last client
    state.press("up")
    assert text_of(state, 80, 8).splitlines()[:-1] != last
    state.press("home")
    assert text_of(state, 80, 8).startswith("node ")


def test_a_story_stays_when_its_request_has_ended(hand: RequestsByHand) -> None:
    state = shown(hand, "down", "enter")
    chosen_before = state.chosen
    hand.release(state.chosen)  # type: ignore[arg-type]
    state.show(pictured(hand))
    assert state.chosen == chosen_before
    assert "its slot has another request by now" in text_of(state)
    state.press("escape")
    assert state.chosen != chosen_before


@pytest.mark.parametrize(
    ("typed", "keys"),
    [
        (b"q", ["q"]),
        (b"\x1b[A\x1b[B\x1bOA", ["up", "down", "up"]),
        (b"\x1b[5~\x1b[6~\x1b[H\x1b[F", ["page up", "page down", "home", "end"]),
        (b"\x1b", ["escape"]),
        (b"\r\n\x7f\x08 /", ["enter", "enter", "backspace", "backspace", " ", "/"]),
        (b"\x1b[15~x\x1b[1;5Cy\x00\x01", ["x", "y"]),
        ("ä€".encode() + b"\xff", ["ä", "€"]),
        (b"\x1b[", []),
    ],
)
def test_keys_are_what_terminals_send_for_them(typed: bytes, keys: list[str]) -> None:
    assert list(keys_of(typed)) == keys


# ---- words and figures


def test_figures_have_three_digits_and_a_unit() -> None:
    assert [count(it) for it in (0, 3.456, 1204, 99_999, 123_456, 1.5e9, 0.25, None)] == [
        *("0", "3.46", "1204", "99999", "123k", "1.5G", "0.25", "-")
    ]
    assert [size(it) for it in (0, 999, 1000, 417_000, 3.1e9, 999.7e6)] == [
        *("0 B", "999 B", "1 kB", "417 kB", "3.1 GB", "1 GB")
    ]
    assert [duration(it) for it in (0, 4.17e-4, 0.012, 0.9996, 9.999, 59.6, 133, 8100, 50 * 3600, -1.5, None)] == [
        *("0us", "417us", "12ms", "1s", "10s", "1m00s", "2m13s", "2h15m", "2d02h", "-1.5s", "-")
    ]
    assert [share_bar(it, 6) for it in (0, 0.001, 0.5, 1, 1.2)] == ["[....]", "[#...]", "[##..]", "[####]", "[####]"]


def test_a_field_that_is_longer_than_a_line_is_broken_and_all_of_it_there() -> None:
    lines = labelled("label", ["one", "word" * 30, "two"], 40)
    assert max(line.cell_len for line in lines) <= 40
    assert "".join("".join(line.plain for line in lines).split()) == "labelone" + "word" * 30 + "two"
