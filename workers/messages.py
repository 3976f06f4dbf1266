"""The wire schema between nodes: msgspec structs in msgpack, versioned, bounded, never pickle.

Every message is idempotent and carries absolute values (a whole window, never a delta), so a lost, doubled, late or
reordered one changes nothing but time. The envelope names who speaks and to which incarnation of whom (R14); a request
is `(language node, its incarnation, its slot, its epoch)`, and the room joins that to the encoder's call.

    language bootstrap --register, init, ask, resume, abort--> encode bootstrap   (answers: registered, refused, stale)
    encode poller --announce, status, abort_ack, heartbeat, snapshot--> language poller
    encode transfer worker --landed--> language poller
    language poller --checked, close, heartbeat, resync, follow--> encode poller
    encode poller --notices, inventory--> language poller

`decode` checks the type and range of every field before anything else sees it; what depends on a peer's geometry (block
indices, slots) is checked by the role that knows it.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Annotated, Final

import msgspec

from embridge.allocator.errors import ProtocolError

VERSION: Final = 10
ACCEPTED_VERSIONS: Final = (10,)  # those that `decode` can read: a field more or less is no message of it
MAX_MESSAGE_BYTES: Final = 1 << 20
MAX_TEXT: Final = 128
MAX_WINDOW: Final = 4096
MAX_ROOMS_A_HEARTBEAT: Final = 8192
MAX_OFFERS: Final = 16
MAX_NOTICES: Final = 1024
MAX_FOREIGN_BYTES: Final = 4096  # of a frame of another version that is looked into

U32 = Annotated[int, msgspec.Meta(ge=0, le=(1 << 32) - 1)]
U63 = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
Id = Annotated[int, msgspec.Meta(ge=1, le=(1 << 63) - 1)]
Epoch = Annotated[int, msgspec.Meta(ge=1, le=(1 << 28) - 1)]
SlotNumber = Annotated[int, msgspec.Meta(ge=0, le=(1 << 16) - 1)]
Text = Annotated[str, msgspec.Meta(max_length=MAX_TEXT)]
Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
EngineName = Annotated[str, msgspec.Meta(pattern=r"\A[a-z0-9_-]{1,16}\Z")]
ItemName = Annotated[bytes, msgspec.Meta(min_length=1, max_length=256)]
ItemBytes = Annotated[int, msgspec.Meta(ge=1, le=1 << 44)]
Positive32 = Annotated[int, msgspec.Meta(ge=1, le=(1 << 32) - 1)]
DtypeCode = Annotated[int, msgspec.Meta(ge=1, le=255)]
PhaseNumber = Annotated[int, msgspec.Meta(ge=0, le=4)]


class _Fields(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Fields in their order: exactly these, in a message of this version."""


class Envelope(_Fields, frozen=True):
    """Who speaks, and to which incarnation of whom.

    `for_incarnation` is 0 if the sender cannot know it yet (register).
    """

    version: Annotated[int, msgspec.Meta(ge=0, le=255)]
    node_id: Id
    incarnation: Id
    for_incarnation: U63


class Foreign(msgspec.Struct, frozen=True):
    """What can be read of a message of another version.

    That is its tag, and the fields of our envelope, which come first in the envelope of each version.
    """

    tag: str
    envelope: Envelope


class RequestKey(_Fields, frozen=True):
    """A request as the language node that opened it knows it (its node id and incarnation are in the envelope)."""

    slot: SlotNumber
    epoch: Epoch
    room: U63


class Register(_Fields, frozen=True, tag="register"):
    """A language node introduces itself: geometry, where its poller listens, and how its payload is reached.

    `offers`: by the name of each engine that it offers, what that engine tells of itself. The encode node chooses one
    of them. `registration` rises with every connection it makes, and voids what was granted under a lesser one (R14).
    `verify`: it checks the rows that it receives; both nodes do, or neither (R27).
    """

    envelope: Envelope
    bootstrap_addr: Text
    poller_addr: Text
    offers: Annotated[dict[EngineName, Text], msgspec.Meta(max_length=MAX_OFFERS)]
    hidden_size: U32
    block_size: U32
    num_blocks: U32
    dtype: Text
    deepstack_layers: U32
    fill_ids: bool
    mrope_positions: bool
    num_slots: U32
    window_blocks: U32
    registration: U63
    verify: bool


class Registered(_Fields, frozen=True, tag="registered"):
    """The answer: who the encode node is, and the engine through which rows will travel, one that was offered.

    `run_socket`: where clients of a node of its host ask for its shelf; empty, if it has none.
    """

    envelope: Envelope
    bootstrap_addr: Text
    poller_addr: Text
    engine: EngineName
    num_blocks: U32
    window_blocks: U32
    run_socket: Text


class Refused(_Fields, frozen=True, tag="refused"):
    """The answer to a registration, or to one request (`key` set), that cannot be served."""

    envelope: Envelope
    code: U32
    reason: Text
    key: RequestKey | None = None


class Stale(_Fields, frozen=True, tag="stale"):
    """The answer to a message for `incarnation`, which is no more, or from a node that is not registered here."""

    envelope: Envelope
    incarnation: U63


class _Grant(_Fields, frozen=True):
    """What a grant says, the first one of a request and later ones.

    `session_id`: under which the blocks may be written, with the port and the address of the payload in that session's
    engine (R10); all three are 0 through shared memory. They stand in each grant and not in the registration, so that
    after a fence one message says it all.
    """

    envelope: Envelope
    key: RequestKey
    endpoint: Text
    dst_port: Port
    session_id: U32
    base: U63
    dst_embedding_indices: Annotated[list[U32], msgspec.Meta(max_length=MAX_WINDOW)]
    first_block: U32
    required_dst_info_num: Annotated[int, msgspec.Meta(ge=1, le=64)]
    allocated_tokens: U32


class Init(_Grant, frozen=True, tag="init"):
    """The first grant of a request; it may grant no block at all (R19).

    Rows before `first_block` another encode node has sent (R26).
    """

    registration: U63


class Ask(_Grant, frozen=True, tag="ask"):
    """The first message of a fetch: a request for the published item of a key, where others name a room (R50).

    It grants no block: those follow when the item's length is known. `generation`: that one and no other; 0: any. Rows
    before `first_block` have come before, of that generation, by a fetch that failed (R57). The number of the room is
    the fetch's own, and says which workers have it.
    """

    registration: U63
    item: ItemName
    generation: U63


class Resume(_Grant, frozen=True, tag="resume"):
    """A later grant: the whole window still held, from `first_block` (R1).

    `sent_tokens` is checked, never obeyed (R2).
    """

    sent_tokens: U32


class Abort(_Fields, frozen=True, tag="abort"):
    """The destination gives the request up and wants to know when nothing writes into its blocks any more."""

    envelope: Envelope
    key: RequestKey
    code: U32
    reason: Text


class AbortAck(_Fields, frozen=True, tag="abort_ack"):
    """No attempt of this request is under way, and none will be.

    `tainted` is session + 1 under which one may still land (R7, R9).
    """

    envelope: Envelope
    key: RequestKey
    tainted: U32


class ItemState(_Fields, frozen=True):
    """What a request fetches: which of the items of its key, its shape, the code of its dtype, and its bytes."""

    generation: U63
    rows: Positive32
    width: Positive32
    dtype: DtypeCode
    num_bytes: ItemBytes


class RoomState(_Fields, frozen=True):
    """One request as the encode side sees it, for one destination.

    `resumed`: it has been Transferring, whatever its phase is now. `session`: the latest one of which it knows grants.
    `checksum`: of the rows that are sent, where nodes verify (R27). `item`: of a fetch alone.
    """

    key: RequestKey
    phase: PhaseNumber
    resumed: bool
    sent_tokens: U32
    total_tokens: U32
    ready_tokens: U32
    known_blocks: U32
    session: U32
    tainted: U32
    code: U32
    reason: Text
    checksum: U32
    item: ItemState | None = None


class CheckedRows(_Fields, frozen=True):
    """How many rows of one request, counted from its first, its destination has found right (R27)."""

    key: RequestKey
    checked_tokens: U32


class Announce(_Fields, frozen=True, tag="announce"):
    """The real length, ahead of the rows."""

    envelope: Envelope
    key: RequestKey
    total_tokens: U32


class Status(_Fields, frozen=True, tag="status"):
    """The common phase, and this destination's progress (R18)."""

    envelope: Envelope
    room: RoomState


class Landed(_Fields, frozen=True, tag="landed"):
    """The request has succeeded, says the transfer worker that has sent its last row (R83).

    It comes over a connection of that worker's own, so it is in no digest; the poller's heartbeats repeat what it says.
    """

    envelope: Envelope
    room: RoomState


class Checked(_Fields, frozen=True, tag="checked"):
    """Where nodes verify: what a language node has checked (R27).

    It is told as soon as rows were checked, and instead of each heartbeat; then it lists every request in flight with
    that encode node of which rows were checked.
    """

    envelope: Envelope
    rooms: Annotated[list[CheckedRows], msgspec.Meta(max_length=MAX_ROOMS_A_HEARTBEAT)]


class Close(_Fields, frozen=True, tag="close"):
    """The destination has the outcome and holds nothing of the request any more (R23)."""

    envelope: Envelope
    key: RequestKey


class Heartbeat(_Fields, frozen=True, tag="heartbeat"):
    """A sign of life.

    An encode node's tells of the requests in flight with that peer what has changed and was not told, and all that have
    ended and are not closed (R23). `num_rooms` and `digest` are of all that have not ended, as they were told last,
    these included: how many, and the sum of `hash_of` each modulo 2**63 (R77). `closed`: requests that are in flight no
    more, because this destination has closed them before it was told of their end. `bootstrap_restarts`: how often that
    node's bootstrap was restarted, which forgets the grants that wait there for their encoders (R24). A language node's
    lists none.
    """

    envelope: Envelope
    rooms: Annotated[list[RoomState], msgspec.Meta(max_length=MAX_ROOMS_A_HEARTBEAT)]
    closed: Annotated[list[RequestKey], msgspec.Meta(max_length=MAX_ROOMS_A_HEARTBEAT)]
    num_rooms: U32
    digest: U63
    bootstrap_restarts: U32


class Resync(_Fields, frozen=True, tag="resync"):
    """What a language node has heard does not add up to the digest of a heartbeat: it wants to be told all (R77).

    It asks again with each heartbeat for which that is so.
    """

    envelope: Envelope


class Snapshot(_Fields, frozen=True, tag="snapshot"):
    """All requests in flight with that peer that have not ended and whose slots there are in [first_slot, end_slot).

    One piece of the answer to `Resync`; a piece that is lost is missed by the digest.
    """

    envelope: Envelope
    first_slot: SlotNumber
    end_slot: Annotated[int, msgspec.Meta(ge=1, le=1 << 16)]
    rooms: Annotated[list[RoomState], msgspec.Meta(max_length=MAX_ROOMS_A_HEARTBEAT)]


class ItemNotice(_Fields, frozen=True):
    """How one entry of a shelf stands: which item it has; of generation 0, none."""

    entry: U32
    generation: U63
    num_bytes: U63
    key: Annotated[bytes, msgspec.Meta(max_length=256)]


class Follow(_Fields, frozen=True, tag="follow"):
    """A language node wants to be told what is published, and was told so far of one stream up to a number (R75).

    It says so with each heartbeat as long as it wants, and when it finds that it has missed something.
    """

    envelope: Envelope
    stream: U63
    number: U63


class Notices(_Fields, frozen=True, tag="notices"):
    """What has changed on the shelf, numbered from `first` on within a stream, which is one life of the poller (R73).

    With no changes it is a heartbeat: it says which number would be the next, so that a lost one shows (R74).
    """

    envelope: Envelope
    stream: U63
    first: U63
    changes: Annotated[list[ItemNotice], msgspec.Meta(max_length=MAX_NOTICES)]


class Inventory(_Fields, frozen=True, tag="inventory"):
    """What has been announced up to a number, of the entries in [first_entry, end_entry) of so many (R76).

    One piece of all of it; a piece that is lost is asked for with the others.
    """

    envelope: Envelope
    stream: U63
    number: U63
    first_entry: U32
    end_entry: Positive32
    num_entries: Positive32
    items: Annotated[list[ItemNotice], msgspec.Meta(max_length=MAX_NOTICES)]


Message = (
    Register
    | Registered
    | Refused
    | Stale
    | Init
    | Ask
    | Resume
    | Abort
    | AbortAck
    | Announce
    | Status
    | Landed
    | Checked
    | Close
    | Heartbeat
    | Resync
    | Snapshot
    | Follow
    | Notices
    | Inventory
)

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    return _encoder.encode(message)


def hash_of(room: RoomState) -> int:
    """63 bits of what is told of a request; both nodes take them of the same message."""
    return int.from_bytes(blake2b(_encoder.encode(room), digest_size=8).digest(), "little") >> 1


def decode(data: bytes, peer: str) -> Message:
    """Decode one frame from `peer` (for the error only).

    Raises:
        ProtocolError: too long, no valid message, a field out of its range, or another version.
    """
    if len(data) > MAX_MESSAGE_BYTES:
        raise ProtocolError(peer, "message length", len(data), f"at most {MAX_MESSAGE_BYTES} bytes")
    try:
        message: Message = _decoder.decode(data)
    except (ValueError, RecursionError) as error:  # msgspec's own, and UnicodeDecodeError, are ValueErrors
        raise ProtocolError(peer, "message", str(error)[:MAX_TEXT], "a message of the embridge schema") from error
    if message.envelope.version not in ACCEPTED_VERSIONS:
        raise ProtocolError(peer, "version", message.envelope.version, f"one of {ACCEPTED_VERSIONS}")
    return message


def decode_foreign(data: bytes) -> Foreign | None:
    """What can be read of a frame that `decode` refuses, if it is a message of a version that is not accepted here."""
    if len(data) > MAX_FOREIGN_BYTES:
        return None
    try:
        tag, envelope, *_ = msgspec.msgpack.decode(data, type=list)
        fields = msgspec.convert(envelope, list)[: len(Envelope.__struct_fields__)]  # a map has no slice: KeyError
        foreign = Foreign(msgspec.convert(tag, Text), msgspec.convert(fields, Envelope))
    except (ValueError, TypeError, RecursionError):
        return None
    return None if foreign.envelope.version in ACCEPTED_VERSIONS else foreign


def clip(text: str) -> str:
    """A text that fits a message's field."""
    return text[:MAX_TEXT]
