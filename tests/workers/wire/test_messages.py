"""The wire schema: what is not a message of it is a ProtocolError, and nothing else (P16)."""

from __future__ import annotations

import itertools
import socket
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embridge.allocator.errors import AttachError, ProtocolError
from embridge.workers import messages as msg
from embridge.workers import run_socket

HEADER = msg.Envelope(msg.VERSION, 1, 2, 3)
KEY = msg.RequestKey(5, 6, 7)
STATE = msg.RoomState(KEY, 2, True, 8, 9, 10, 11, 5, 12, 13, "why", 14)

EXAMPLES: list[msg.Message] = [
    msg.Register(
        HEADER,
        "tcp://a:1",
        "tcp://a:2",
        {"shm": "/run/a.sock", "mooncake": "2"},
        2,
        3,
        4,
        "bfloat16",
        5,
        True,
        True,
        64,
        16,
        7,
        True,
    ),
    msg.Registered(HEADER, "tcp://b:1", "tcp://b:2", "shm", 4, 16, ""),
    msg.Refused(HEADER, 7, "no", KEY),
    msg.Refused(HEADER, 7, "no"),
    msg.Stale(HEADER, 9),
    msg.Init(HEADER, KEY, "tcp://a:2", 0, 1, 1 << 45, [1, 2, 3], 0, 1, 300, 7),
    msg.Resume(HEADER, KEY, "tcp://a:2", 0, 1, 1 << 45, [4, 5], 3, 1, 200, 300),
    msg.Abort(HEADER, KEY, 3, "enough"),
    msg.AbortAck(HEADER, KEY, 2),
    msg.Announce(HEADER, KEY, 2000),
    msg.Status(HEADER, STATE),
    msg.Landed(HEADER, STATE),
    msg.Close(HEADER, KEY),
    msg.Heartbeat(HEADER, [STATE, STATE], [KEY, KEY], 2, 1 << 62, 3),
    msg.Checked(HEADER, [msg.CheckedRows(KEY, 8), msg.CheckedRows(KEY, 9)]),
    msg.Resync(HEADER),
    msg.Snapshot(HEADER, 5, 1 << 16, [STATE, STATE]),
    msg.Ask(HEADER, KEY, "tcp://a:2", 0, 1, 1 << 45, [], 0, 1, 0, 7, b"\xffkey", 8),
    msg.Status(HEADER, msgspec.structs.replace(STATE, item=msg.ItemState(5, 2, 3, 4, 48))),
    msg.Follow(HEADER, 7, 8),
    msg.Notices(HEADER, 7, 8, [msg.ItemNotice(3, 4, 5, b"\xffkey"), msg.ItemNotice(4, 0, 0, b"")]),
    msg.Inventory(HEADER, 7, 8, 0, 1024, 2048, [msg.ItemNotice(3, 4, 5, b"\xffkey")]),
]
NAMES = [type(example).__name__ + str(i) for i, example in enumerate(EXAMPLES)]
RAW: list[list[Any]] = [msgspec.msgpack.decode(msg.encode(example)) for example in EXAMPLES]


def refused(data: bytes) -> ProtocolError:
    with pytest.raises(ProtocolError) as raised:
        msg.decode(data, "tcp://mallory:1")
    assert raised.value.peer == "tcp://mallory:1"
    assert len(str(raised.value)) < 1000
    return raised.value


def packed(value: Any) -> bytes:
    return msgspec.msgpack.encode(value)


def test_every_message_comes_back_as_it_was() -> None:
    for example in EXAMPLES:
        assert msg.decode(msg.encode(example), "peer") == example


def test_every_kind_of_message_has_an_example() -> None:
    assert {type(example) for example in EXAMPLES} == set(msg.Message.__args__)


def test_a_message_that_is_cut_short_anywhere_is_refused() -> None:
    for example in EXAMPLES:
        data = msg.encode(example)
        for length in range(len(data)):
            refused(data[:length])


def test_bytes_after_a_message_are_refused() -> None:
    for example in EXAMPLES:
        refused(msg.encode(example) + b"\0")
        refused(msg.encode(example) * 2)


def test_a_message_that_is_too_long_is_refused_before_it_is_read() -> None:
    error = refused(b"\xc1" * (msg.MAX_MESSAGE_BYTES + 1))
    assert (error.field, error.value) == ("message length", msg.MAX_MESSAGE_BYTES + 1)


def test_another_version_is_refused_and_named() -> None:
    for raw in RAW:
        for version in (0, msg.VERSION + 1, 255):
            error = refused(packed([raw[0], [version, *raw[1][1:]], *raw[2:]]))
            assert (error.field, error.value) == ("version", version)


def test_every_version_that_is_accepted_can_be_read() -> None:
    """D5: what is said of a version is true of its frames."""
    assert msg.VERSION in msg.ACCEPTED_VERSIONS
    for version in msg.ACCEPTED_VERSIONS:
        for raw, example in zip(RAW, EXAMPLES, strict=True):
            message = msg.decode(packed([raw[0], [version, *raw[1][1:]], *raw[2:]]), "peer")
            assert type(message) is type(example)
            assert msg.decode_foreign(msg.encode(message)) is None


def test_a_frame_of_version_1_is_refused_and_its_version_is_read() -> None:
    """D5, P16: its envelope had one field more, a sequence number that nobody read."""
    raw = RAW[0]
    frame = packed([raw[0], [1, 20, 3, 0, 1], *raw[2:]])
    refused(frame)
    foreign = msg.decode_foreign(frame)
    assert foreign is not None
    assert (foreign.tag, foreign.envelope) == ("register", msg.Envelope(1, 20, 3, 0))


@pytest.mark.parametrize("envelope", [{}, {0: 1}, "text", b"bytes", 7, None, [{}, {}, {}, {}]], ids=repr)
def test_a_frame_whose_envelope_is_none_is_refused_and_nothing_more(envelope: object) -> None:
    """P16: one takes what Python says of a slice of a map, which is another error from Python 3.12 on."""
    frame = packed([RAW[0][0], envelope])
    refused(frame)
    assert msg.decode_foreign(frame) is None


@pytest.mark.parametrize(
    "offers",
    [
        {"Shm": ""},
        {"": ""},
        {"a" * 17: ""},
        {"shm\n": ""},
        {"shm": "x" * 129},
        {"shm": 1},
        {str(i): "" for i in range(17)},
        [],
    ],
)
def test_offers_of_engines_are_bounded(offers: object) -> None:
    """P12, P16: their number, their names and what they say; a name may stand in a line of the log."""
    raw = list(RAW[0])
    raw[4] = offers
    assert refused(packed(raw)).field == "message"


def test_a_missing_field_is_refused() -> None:
    for raw in RAW:
        optional = raw[0] == "refused"  # the request that was refused; none, where it was the node
        for length in range(len(raw) - optional):
            refused(packed(raw[:length]))


def test_a_field_too_many_is_refused() -> None:
    for raw in RAW:
        refused(packed([*raw, 1]))
        refused(packed([raw[0], [*raw[1], 1], *raw[2:]]))


@pytest.mark.parametrize("tag", ["", "REGISTER", "pickle", 0, None, ["init"], {"init": 1}])
def test_an_unknown_kind_is_refused(tag: object) -> None:
    refused(packed([tag, *RAW[5][1:]]))


WRONG: list[object] = [
    -1,
    1 << 63,
    (1 << 64) - 1,
    -(1 << 63),
    1.5,
    float("nan"),
    None,
    True,
    "x" * 5000,
    b"bytes",
    [],
    [[]],
    {},
    {"a": 1},
]


def places(value: Any) -> list[tuple[int, ...]]:
    """Where single values stand in a message, lists within it included."""
    if not isinstance(value, list):
        return [()]
    return [(i, *rest) for i, item in enumerate(value) for rest in places(item)] + ([()] if not value else [])


def with_value(raw: Any, place: tuple[int, ...], value: Any) -> Any:
    if not place:
        return value
    return [with_value(item, place[1:], value) if i == place[0] else item for i, item in enumerate(raw)]


def at(raw: Any, place: tuple[int, ...]) -> Any:
    for i in place:
        raw = raw[i]
    return raw


def test_a_value_of_a_wrong_type_or_out_of_range_is_refused_in_every_place() -> None:
    """What is read is what was meant: no text for a number, no -1, nothing beyond 63 bits, no text without end."""
    for raw in RAW:
        for place, wrong in itertools.product(places(raw), WRONG):
            good = at(raw, place)
            if type(wrong) is type(good) and wrong == good:
                continue
            if type(good) is type(wrong) and wrong in ([], {}, b"bytes"):
                continue
            data = packed(with_value(raw, place, wrong))
            if good is None and wrong is None:
                continue
            refused(data)


@pytest.mark.parametrize(
    ("name", "place", "limit"),
    [
        ("Init5", (2, 0), (1 << 16) - 1),  # slot
        ("Init5", (2, 1), (1 << 28) - 1),  # epoch
        ("Init5", (2, 2), (1 << 63) - 1),  # room
        ("Init5", (9,), 64),  # required_dst_info_num
        ("Init5", (10,), (1 << 32) - 1),  # allocated_tokens
        ("Init5", (4,), 65535),  # dst_port
        ("Resume6", (7, 0), (1 << 32) - 1),  # an index
        ("Status10", (2, 1), 4),  # phase
        ("Announce9", (3,), (1 << 32) - 1),  # total_tokens
        ("Close12", (1, 1), (1 << 63) - 1),  # node_id
        ("Heartbeat13", (4,), (1 << 32) - 1),  # num_rooms
        ("Heartbeat13", (5,), (1 << 63) - 1),  # digest
        ("Checked14", (2, 0, 1), (1 << 32) - 1),  # checked_tokens
        ("Snapshot16", (2,), (1 << 16) - 1),  # first_slot
        ("Snapshot16", (3,), 1 << 16),  # end_slot
    ],
)
def test_each_number_may_reach_its_limit_and_not_go_beyond(name: str, place: tuple[int, ...], limit: int) -> None:
    raw = RAW[NAMES.index(name)]
    msg.decode(packed(with_value(raw, place, limit)), "peer")
    refused(packed(with_value(raw, place, limit + 1)))


@pytest.mark.parametrize("place", [(1, 1), (1, 2), (2, 1), (9,)], ids=["node_id", "incarnation", "epoch", "required"])
def test_what_counts_from_one_is_not_zero(place: tuple[int, ...]) -> None:
    refused(packed(with_value(RAW[5], place, 0)))


def test_lists_have_a_limit() -> None:
    key = NAMES.index("Init5")
    msg.decode(packed(with_value(RAW[key], (7,), [0] * msg.MAX_WINDOW)), "peer")
    refused(packed(with_value(RAW[key], (7,), [0] * (msg.MAX_WINDOW + 1))))
    for name, place in (("Heartbeat13", (2,)), ("Snapshot16", (4,))):
        told = RAW[NAMES.index(name)]
        room = [*at(told, place)[0][:-3], "", 0, None]
        msg.decode(packed(with_value(told, place, [room] * msg.MAX_ROOMS_A_HEARTBEAT)), "peer")
        refused(packed(with_value(told, place, [room] * (msg.MAX_ROOMS_A_HEARTBEAT + 1))))
    checked = RAW[NAMES.index("Checked14")]
    msg.decode(packed([*checked[:2], checked[2][:1] * msg.MAX_ROOMS_A_HEARTBEAT]), "peer")
    refused(packed([*checked[:2], checked[2][:1] * (msg.MAX_ROOMS_A_HEARTBEAT + 1)]))


def test_deep_nesting_is_refused_and_does_not_break_the_stack() -> None:
    for depth in (100, 10_000, 1_000_000):
        refused(b"\x91" * depth + b"\xc0")
        refused(b"\x93\xa4init" + b"\x91" * depth + b"\xc0")
        refused((b"\x81\xa1a" * depth + b"\xc0")[: msg.MAX_MESSAGE_BYTES])


def test_text_that_is_no_text_is_refused() -> None:
    data = msg.encode(EXAMPLES[7]).replace(b"enough", b"\xff\xfe\xfd\xfc\xfb\xfa")
    refused(data)


def decodes_or_is_refused(data: bytes) -> None:
    try:
        message = msg.decode(data, "peer")
    except ProtocolError:
        return
    assert type(message) in {type(example) for example in EXAMPLES}
    assert msg.decode(msg.encode(message), "peer") == message


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_a_message_or_a_protocol_error(data: bytes) -> None:
    decodes_or_is_refused(data)


@given(st.sampled_from(EXAMPLES), st.data())
@settings(max_examples=100, deadline=None)
def test_a_message_with_some_bytes_changed_is_a_message_or_a_protocol_error(
    example: msg.Message, data: st.DataObject
) -> None:
    raw = bytearray(msg.encode(example))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    decodes_or_is_refused(bytes(raw))


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=20),
    lambda children: st.lists(children, max_size=4),
    max_leaves=6,
)


@given(st.sampled_from([raw[0] for raw in RAW]), st.lists(plain, max_size=14))
@settings(max_examples=50, deadline=None)
def test_any_values_under_a_known_kind_are_a_message_or_a_protocol_error(tag: str, values: list[Any]) -> None:
    decodes_or_is_refused(packed([tag, *values]))


def test_a_reason_is_clipped_to_what_a_message_carries() -> None:
    text = "\N{SNOWMAN}" * 500
    message = msg.Abort(HEADER, KEY, 3, msg.clip(text))
    assert msg.decode(msg.encode(message), "peer") == message


@given(st.binary(min_size=1, max_size=100))
@settings(max_examples=200, deadline=None)
def test_any_frame_on_the_run_socket_is_a_frame_or_an_attach_error(data: bytes) -> None:
    """P16: the launcher reads these; what another process of the user's sends there does not end a node."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        theirs.send(data)
        try:
            frame = run_socket.receive_frame(ours)
        except AttachError:
            return
        assert frame is not None


def test_text_on_the_run_socket_that_is_no_text_is_an_attach_error() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        theirs.send(packed({"kind": "sorry", "reason": "enough"}).replace(b"enough", b"\xff\xfe\xfd\xfc\xfb\xfa"))
        with pytest.raises(AttachError):
            run_socket.receive_frame(ours)
