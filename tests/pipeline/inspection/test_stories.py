"""The stories of requests, and their Chrome trace, out of a control segment that is made by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.by_hand import NOW_NS, RequestsByHand, by_hand, seen

from embridge.allocator import ends
from embridge.allocator.claims import REQUEST
from embridge.allocator.errors import FailureCode
from embridge.allocator.geometry import Role
from embridge.allocator.records import CLAIM_WORDS, Destination, Slot, WrittenBy
from embridge.allocator.request_tables import SlotRecord
from embridge.allocator.status import Phase
from embridge.pipeline.cli.chrome_trace import chrome_trace
from embridge.pipeline.cli.story_lines import story_lines
from embridge.pipeline.inspection.paths import known_paths
from embridge.pipeline.inspection.stories import NodeStories, Story, stories, story_of
from embridge.workers.inspection.scene import Scene
from embridge.workers.timing import NS


@pytest.fixture
def language(tmp_path: Path) -> RequestsByHand:
    return RequestsByHand(by_hand(tmp_path))


def delivered(hand: RequestsByHand, room: int = 7) -> tuple[int, int]:
    """A request that took from 90 s to 92.5 s, and is released."""
    request = hand.open(room, opened_s=90, TOTAL=200, NUM_ROUNDS=2)
    hand.enter(request, Phase.WaitingForInput, 90.5)
    hand.enter(request, Phase.Transferring, 91, 128)
    hand.enter(request, Phase.Success, 92.5, 200)
    hand.release(request)
    return request


def only(hand: RequestsByHand) -> Story:
    (story,) = stories(hand.control, NOW_NS)
    return story


def text_of(story: Story, width: int = 80) -> str:
    return "\n".join(line.plain for line in story_lines(story.told(), width))


def test_a_request_that_has_ended_is_told_of_until_its_slot_has_another(language: RequestsByHand) -> None:
    """P8: its phases with their times, when it ended, and that nobody owes it anything."""
    slot, epoch = delivered(language)
    told = only(language).told()
    assert [(it["phase"], it["at_s"], it["for_s"], it["lasts"]) for it in told["stages"]] == [
        ("Bootstrapping", 0.0, 0.5, False),
        ("WaitingForInput", 0.5, 0.5, False),
        ("Transferring", 1.0, 1.5, False),
    ]
    assert (told["phase"], told["has_ended"], told["took_s"], told["waits_for"]) == ("Success", True, 2.5, None)
    assert (told["sent"], told["total"], told["rounds"]) == (200, 200, 2)
    assert (told["slot"], told["epoch"]) == (slot, epoch)
    record = SlotRecord()
    record.words[Slot.ROOM], record.words[Slot.OPENED_NS] = 8, 95 * NS
    language.control.opener.open(slot, record, 95 * NS)
    assert only(language).room == 8


def test_a_request_that_is_just_being_opened_is_not_told_of_by_the_words_of_the_last_one(
    language: RequestsByHand,
) -> None:
    """P17: the record is about the next epoch before the status word is."""
    slot, epoch = delivered(language)
    language.control.slots.set(slot, Slot.EPOCH, epoch + 1)
    assert stories(language.control, NOW_NS) == []
    assert story_of(Scene(language.control, NOW_NS), slot, epoch) is None


def test_a_request_that_waits_says_for_whom_and_since_when(language: RequestsByHand) -> None:
    language.open(9, opened_s=98.5)
    story = only(language)
    told = story.told()
    assert (told["has_ended"], told["took_s"], told["phase"]) == (False, 1.5, "Bootstrapping")
    assert told["stages"] == [{"phase": "Bootstrapping", "at_s": 0.0, "for_s": 1.5, "lasts": True}]
    assert told["waits_for"] is not None
    text = text_of(story)
    assert "room 9    Bootstrapping, open for 1.5s" in text
    assert f"waits for {told['waits_for']}" in text
    assert told["why"] in " ".join(text.split())


def test_a_failure_is_told_with_its_code_and_reason(language: RequestsByHand) -> None:
    slot, epoch = language.open(9, opened_s=90)
    language.control.slots.claim_failure(slot, FailureCode.TIMEOUT, "its deadline has passed")
    language.enter((slot, epoch), Phase.Failed, 99)
    story = only(language)
    assert (story.failure, story.reason, story.took_ns) == ("timeout", "its deadline has passed", 9 * NS)
    assert "timeout: its deadline has passed" in text_of(story)
    assert story.waits is not None  # its slot is not released


def test_the_path_is_told_as_soon_as_it_is_known(language: RequestsByHand, tmp_path: Path) -> None:
    """R28: on the language side by the claim, on the encode side by who writes."""
    slot, _ = language.open(9, opened_s=90)
    claims = language.control.claims
    assert known_paths(language.control, slot, 0) == []
    assert known_paths(language.control, slot, 5) == ["shm"]
    claims._words.store(slot * CLAIM_WORDS + REQUEST, 200 << 16)
    assert known_paths(language.control, slot, 0) == ["direct"]

    encode = RequestsByHand(by_hand(tmp_path, Role.ENCODE))
    slot, _ = encode.open(9, opened_s=90, MAY_WRITE=1)
    assert known_paths(encode.control, slot, 0) == []
    encode.control.slots.set(slot, Slot.NUM_DESTINATIONS, 2)
    encode.control.destinations.set(slot, 1, Destination.WRITTEN_BY, WrittenBy.CLIENT)
    assert known_paths(encode.control, slot, 0) == ["direct"]
    encode.control.destinations.set(slot, 0, Destination.WRITTEN_BY, WrittenBy.WORKER)
    assert known_paths(encode.control, slot, 0) == ["shm", "direct"]


@pytest.mark.parametrize("width", [40, 80])
def test_a_story_is_as_wide_as_the_terminal_and_says_all_of_it(language: RequestsByHand, width: int) -> None:
    slot, epoch = language.open(1 << 62, opened_s=90, address="tcp://encoder-17.some.cluster.local:50001")
    reason = "every write to node 3f through mooncake has failed for 12 s " * 2
    language.control.slots.claim_failure(slot, FailureCode.TIMEOUT, reason)
    language.enter((slot, epoch), Phase.Failed, 99)
    lines = story_lines(only(language).told(), width)
    assert max(line.cell_len for line in lines) <= width
    text = "".join("".join(line.plain for line in lines).split())
    for said in ("encoder-17.some.cluster.local:50001", "Bootstrapping", "".join(only(language).reason.split())):
        assert said in text


def test_a_chrome_trace_has_a_process_a_node_a_thread_a_request_and_a_slice_a_phase(language: RequestsByHand) -> None:
    """Its structure is that of the Trace Event Format, and slices lie within the request's."""
    delivered(language)
    language.open(9, opened_s=98)
    node = NodeStories("language", "b9", 1_700_000_000 * NS, stories(language.control, NOW_NS))
    trace = json.loads(json.dumps(chrome_trace([node, node._replace(role="encode")])))
    events = trace["traceEvents"]
    assert {event["ph"] for event in events} == {"M", "X"}
    assert {(event["args"]["name"], event["pid"]) for event in events if event["name"] == "process_name"} == {
        ("language node b9", 1),
        ("encode node b9", 2),
    }
    slices = [event for event in events if event["ph"] == "X" and event["pid"] == 1]
    assert all(event["dur"] >= 0 <= event["ts"] and isinstance(event["tid"], int) for event in slices)
    first = [(event["name"], event["ts"], event["dur"]) for event in slices if event["tid"] == 1]
    assert first == [
        ("room 7: Success", 0.0, 2.5e6),
        ("Bootstrapping", 0.0, 0.5e6),
        ("WaitingForInput", 0.5e6, 0.5e6),
        ("Transferring", 1e6, 1.5e6),
    ]
    whole, phase, waits = (event for event in slices if event["tid"] == 2)
    assert (whole["name"], whole["ts"], whole["dur"]) == ("room 9: Bootstrapping", 8e6, 2e6)
    assert (phase["name"], phase["dur"]) == ("Bootstrapping", 2e6)
    assert waits["name"].startswith("waits for ")
    assert waits["args"]["why"]
    assert trace["otherData"]["begins"]
    assert chrome_trace([])["traceEvents"] == []


def test_what_has_ended_is_counted_by_code_and_path(language: RequestsByHand) -> None:
    """By what the node's processes have counted."""
    slot, epoch = delivered(language)
    assert language.control.ends.succeeded(ends.Counter.POLLER, slot, epoch, ends.Path.DIRECT, 2)
    language.control.ends.failed(ends.Counter.CLIENTS, FailureCode.TIMEOUT)
    assert seen(language.control)["ended"] == {
        "succeeded": 1,
        "failed": {"timeout": 1},
        "delivered": {"direct": {"requests": 1, "tokens": 200}},
    }
