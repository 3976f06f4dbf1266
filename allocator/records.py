"""The records of the control segment, word by word, each with the process that writes it, in the layout's order.

A word is 64 bits. If several processes write a word, its comment says how (a compare-and-swap, an addition).
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from embridge.allocator.geometry import AUX_WORDS

LINE_BYTES: Final = 64
NUM_VIEWS: Final = 2
USER_VIEW: Final = 0  # dirty bits that `client.poll()` takes
LIBRARY_VIEW: Final = 1  # dirty bits that the client's library thread takes


class SegmentHeader(IntEnum):
    """Words of the header."""

    MAGIC = 0
    VERSION = 1
    CONTROL_BYTES = 2
    PAYLOAD_BYTES = 3
    NODE_ID = 4
    INCARNATION = 5
    ROLE = 6
    NODE_STATE = 7
    LAST_SESSION = 8  # language: the highest session number given to an engine (add)
    BLOCK_WAITERS = 9  # one bit for each lane that waits for a block
    LAUNCHER_PID = 10
    STARTED_NS = 11
    LOCKED = 12  # whether the payload may be locked: 0 not asked for, 1 each page as it is touched, else errno << 8 | 1
    FAILING = 13  # launcher: one bit for each process (as in the table) that cannot be kept alive
    VERIFY = 14  # 1: rows are checked on receipt
    UNSENT_MAX_BYTES = 15  # encode: of all clients together
    GEOMETRY = 16
    SLOT_WAITERS = 24  # one bit for each lane that finds no slot
    ROOM_WAITERS = 25  # encode: one bit for each lane whose calls wait for a slot; it reads the log of wanted rooms
    TOUCHED_BYTES = 26  # launcher: so much of the payload, from its beginning, was touched after READY
    LOG_LEVEL = 27  # launcher: the least level of what the node's processes log, as `logging` numbers it
    LIMITS = 32


HEADER_WEB_OFFSET: Final = 8 * 64  # launcher: where the HTTP port is, as text; empty: there is none
HEADER_WEB_BYTES: Final = 128


class NodeState(IntEnum):
    """`SegmentHeader.NODE_STATE`; only rises."""

    STARTING = 0
    READY = 1
    DRAINING = 2
    STOPPED = 3


class Process(IntEnum):
    """Words of one entry of the process table; the launcher writes them, except where a comment says otherwise."""

    PID = 0
    BEAT_NS = 1  # that process; the launcher for it, before it is READY
    STATE = 2  # that process; 0 by the launcher before it is born
    STARTED_NS = 3
    NUM_RESTARTS = 4
    LAST_EXIT = 5  # its exit status, or minus the signal, as 32 bits
    NUM_SILENT = 6  # how often it was killed because it did not beat


class Lane(IntEnum):
    """Words of one lane, which is a client's. The launcher writes them, except where a comment says otherwise."""

    STATE = 0
    NUM_WAITING = 1  # the client: its requests that wait for a slot
    PID = 2
    ATTACHED_NS = 3
    BEAT_NS = 4  # the client's library thread, each turn; 0: it has taken none
    PINNED = 5  # the client: from now on a device may copy between its memory and our payload
    LEFT = 6  # the client: it leaves of its own accord
    UNSENT_BYTES = 7  # encode, the client: host memory with rows that wait to be sent
    # the client, pages in which its slots may be held for long: on an encode node rooms that nobody has asked for yet,
    # on a language node results that are lent; the poller at the end
    NUM_EARLY = 8
    NUM_LENT = 9  # language, the client: blocks that are lent to its scheduler, or will be once it pops them
    # language, 1, the client: the address of an encode node that it wants to know stands in the lane; 0, the bootstrap:
    # it has read that
    WANTS_NODE = 10


class LaneState(IntEnum):
    """`Lane.STATE`."""

    FREE = 0
    ATTACHED = 1
    DEAD = 2  # its slots are being reaped


class Slot(IntEnum):
    """Words of a slot's record; the comment names who writes.

    The client resets all of them, except `RELEASED_EPOCH`, before it opens the epoch.
    """

    ROOM = 0  # client
    EPOCH = 1  # client: the epoch this record is about
    LANE = 2  # client
    TOTAL = 3  # encode: client, language: poller, or the client before it opens a retry; once; 0 unknown
    OPENED_NS = 4  # client
    DEADLINE_NS = 5  # client
    READY = 6  # encode: client
    REQUIRED = 7  # encode: bootstrap, or the client that has joined its first destination; language: client
    LENT = 8  # language: client, `Lent`: whether its scheduler has views of its blocks, until it says so (R35, R82)
    CLEARED_EPOCH = 9  # client: it needs nothing of this epoch any more
    # bootstrap, or the client where `TOLD` says that the epoch is RELEASED: nobody touches this epoch any more
    RELEASED_EPOCH = 10
    FAILURE = 11  # the code of the failure, written after its reason by whoever has `FAILURE_CLAIMED`
    PEER = 12  # language: bootstrap, index of the encode node + 1 once the handshake is done
    GRANTED = 13  # language: client, `blocks:32 | tokens:32` in one word
    FAILURE_CLAIMED = 14  # CAS: the first process to find the failure says why
    DRAINED_BLOCKS = 15  # language: client
    MOVED_NS = 16  # CAS, by whoever moves a watermark: when one moved last; only `embridge status` reads it
    KNOWN_BLOCKS = 17  # language: poller, how much of the grant the encode side has said it knows
    PEER_READY = 18  # language: poller, rows that the encode side has ready
    TAINTED = 19  # language: poller, tainted session + 1 (R6, R7)
    NUM_DESTINATIONS = 20  # encode: bootstrap, or the client that has joined its first destination
    QUIESCED_EPOCH = 21  # encode: worker, no attempt of this epoch can read or write any more
    CONTACTED_EPOCH = 22  # language: bootstrap, before the first grant or abort leaves
    ACKED_EPOCH = 23  # language: poller, the abort was acknowledged, or nobody is left who could write
    NUM_ROUNDS = 24  # language: client
    HEARD_EPOCH = 25  # language: poller, the encode side has answered for this epoch
    INIT_ASKED = 26  # language: client, it has called init, perhaps with no blocks
    SESSION = 27  # language: bootstrap, the latest session under which a grant left; 0: through shared memory only
    # language: poller (client: before it opens a retry), `tokens:32 | checksum:32` of the rows that were checked (R27)
    VERIFIED = 28
    MAY_WRITE = 29  # encode: client, 1: it says of each destination who writes its rows (`Destination.WRITTEN_BY`)
    # `epoch << 2 | Told`, CAS: whether the node's processes have this epoch; of any other epoch, they have it (R78)
    TOLD = 30
    JOINED_BY = 31  # encode, CAS from 0: who has entered its first destination (`JoinedBy`, R79)


SLOT_WORDS: Final = 32
REASON_OFFSET: Final = 8 * SLOT_WORDS
REASON_BYTES: Final = 128
AUX_OFFSET: Final = REASON_OFFSET + REASON_BYTES
ADDRESS_OFFSET: Final = AUX_OFFSET + 4 * AUX_WORDS
ADDRESS_BYTES: Final = 128
SLOT_BYTES: Final = ADDRESS_OFFSET + ADDRESS_BYTES


class Told(IntEnum):
    """`Slot.TOLD`: whether the node's bootstrap, poller and workers have a request; told once, it stays so."""

    UNTOLD = 1  # its client alone has it, unless that is dead
    TOLD = 2
    RELEASED = 3  # its client alone has had it, and has released it


# A word of the finders: `epoch << 16 | slot`, the slot here that has found the grant of that epoch; by CAS (R81).
FINDER_SLOT_BITS: Final = 16


class Lent(IntEnum):
    """`Slot.LENT`: of what its scheduler has views, in the blocks of a request."""

    NOTHING = 0
    RESULT = 1  # of all rows: it needs nothing of its peer any more
    STREAM = 2  # of those that have landed: it is on its way, or has failed


class JoinedBy(IntEnum):
    """`Slot.JOINED_BY`: who has entered the first destination of a slot on the encode side."""

    NOBODY = 0
    CLIENT = 1  # it has found the grant, and has bound itself to it
    BOOTSTRAP = 2


class Destination(IntEnum):
    """Words of one destination of a slot, on the encode side; the comment names who writes.

    Where that is the bootstrap, it is the client for a destination to whose grant that has bound itself (R79).
    """

    PEER = 0  # bootstrap: index of the language node + 1
    INCARNATION = 1  # bootstrap: of that node
    REMOTE_SLOT = 2  # bootstrap
    REMOTE_EPOCH = 3  # bootstrap
    GRANTED_TOKENS = 4  # bootstrap: rows that may be written, contiguous from 0
    GRANTED_BLOCKS = 5  # bootstrap: blocks known, contiguous from 0
    FIRST_GRANT = 6  # bootstrap: tokens of the first grant that had blocks
    SENT = 7  # worker, or client where it writes; first the bootstrap, where it begins, before anybody can see it
    ISSUED = 8  # worker: upper end of the attempt under way (R6)
    TAINTED = 9  # worker: session + 1 whose attempt ended other than done (R6)
    CLOSED = 10  # poller: the destination has acknowledged the end
    ATTEMPT_SESSION = 12  # worker
    REGISTRATION = 13  # bootstrap: the registration of that node under which it granted
    SESSION = 14  # bootstrap: the latest session of its grants, written after the two that follow
    PORT = 15  # bootstrap: of that session's engine
    BASE = 16  # bootstrap: where its payload lies there
    FAILING_NS = 17  # worker: since when no attempt has succeeded; 0: the last one did
    RETRY_NS = 18  # worker: when the next attempt may be made
    BEGIN = 19  # bootstrap: rows that the destination has from another encode node; they are not sent again (R26)
    # worker, first the bootstrap as `SENT`: `tokens:32 | checksum:32` of the rows that are there, before `SENT` (R27)
    SUMMED = 20
    VERIFIED = 21  # poller: rows that the destination has checked (R27)
    WINDOW = 22  # bootstrap: entries that it has of the slot's grants, which its destinations share evenly
    WRITTEN_BY = 23  # client, CAS from 0: who writes its rows (`WrittenBy`); looked at where the slot has `MAY_WRITE`


DESTINATION_WORDS: Final = 24


class WrittenBy(IntEnum):
    """`Destination.WRITTEN_BY`: who writes the rows of one destination, from its first row to its last (R28)."""

    UNDECIDED = 0
    CLIENT = 1  # the client itself, into the destination's blocks
    WORKER = 2  # the room's transfer worker


class Peer(IntEnum):
    """Words of one entry of the peer table."""

    STATE = 0  # bootstrap registers, poller declares dead (CAS)
    NODE_ID = 1
    INCARNATION = 2
    HEARD_NS = 3  # poller
    WINDOW = 4
    NUM_BLOCKS = 5
    NUM_SLOTS = 6
    ENGINE = 7  # bootstrap: the number of the engine through which rows travel (`EngineKind.number`)
    REGISTERED_NS = 8
    REGISTRATION = 9  # bootstrap: which of the registrations of this incarnation counts; only rises (R14)
    TAINTED = 10  # encode: workers raise it, session + 1 of the latest attempt to it that ended other than done (R7)
    REACHED = 11  # encode: workers, 1: rows have been written there


class PeerState(IntEnum):
    """`Peer.STATE`."""

    EMPTY = 0
    REGISTERED = 1
    DEAD = 2


PEER_WORDS: Final = 16
PEER_BOOTSTRAP_OFFSET: Final = 8 * PEER_WORDS
PEER_POLLER_OFFSET: Final = 256
PEER_OFFER_OFFSET: Final = 384
PEER_KEY_OFFSET: Final = 512
PEER_BYTES: Final = 640
MAX_WRITERS: Final = 256


class Writer(IntEnum):
    """Words of one process of another node that has our payload mapped; the launcher writes them."""

    NODE_ID = 0  # 0: entry free
    INCARNATION = 1
    PID = 2
    GENERATION = 3  # how many owners the entry has had
    HAS_CLAIMS = 4  # 1: a client, which writes only under claims; 0: a transfer worker


WRITER_WORDS: Final = 8
CLAIM_WORDS: Final = 2
MEETING_WORDS: Final = 8
POSTS_A_SLOT: Final = 4
BUCKET_POSTS: Final = 8  # a line


class Shelf(IntEnum):
    """Words of the shelf's own record (encode side); `native/shelf.h` moves the first two."""

    DRAWN = 0  # the last generation, or number (add)
    FLOOR = 1  # nothing of a lesser generation is visible; only rises
    READERS = 2  # launcher: how many entries of the reader table were ever in use
    RECALLS = 3  # clients (add): how often a publication has found no room because of what readers have pinned (R62)


class Reader(IntEnum):
    """Words of one process of another node that reads the shelf; the launcher writes them."""

    NODE_ID = 0  # 0: entry free
    INCARNATION = 1
    PID = 2


SHELF_RECORD_WORDS: Final = LINE_BYTES // 8
READER_WORDS: Final = 8
MAX_READERS: Final = 64
OWN_READER: Final = 0  # the node's own bootstrap, for the items that its transfers read (R85)
ITEM_WORDS: Final = 48  # of an entry's record, with its key
MAX_KEY_BYTES: Final = 256


class Fetched(IntEnum):
    """Words of what a slot's request fetches, where it is a published item.

    Who opens the slot writes all of them before: on a language node its client, on an encode node the bootstrap.
    """

    EPOCH = 0  # the request that fetches; a request of any other epoch does not
    NUMBER = 1  # which of the items of its key it is; on a language node the poller writes this and all to `BYTES`
    ROWS = 2
    WIDTH = 3
    DTYPE = 4
    BYTES = 5  # 0: not answered yet
    ENTRY = 6  # encode: with `GENERATION` the item word (R52)
    GENERATION = 7
    FIRST = 8  # encode: the block of the shelf at which its rows begin
    WANTED = 9  # language: the number that is wanted; 0: any
    KEY_BYTES = 10  # language


FETCHED_KEY: Final = 16
FETCHED_WORDS: Final = 48


class Session(IntEnum):
    """Words of one transfer worker's engine on the language side; that worker writes them, `NUMBER` last."""

    NUMBER = 0  # 0: the worker has no session
    PORT = 1
    BASE = 2  # where the payload lies in its process


SESSION_WORDS: Final = 8
PORT_WORDS: Final = (1 << 16) // 64


class Guarded(IntEnum):
    """The first word of each record that one process writes and others read at any time (`GuardedRecords`)."""

    GENERATION = 0  # odd while the others are being written


class Route(IntEnum):
    """Words of one route: a node that discovery knows.

    The registrar writes all of them, between two steps of its generation.
    """

    STATE = 1  # a NodeState; 0: entry free
    NODE_ID = 2
    INCARNATION = 3
    HEALTHY = 4
    OUTSTANDING_TOKENS = 5
    OUTSTANDING_REQUESTS = 6
    FREE_BLOCKS = 7
    NUM_BLOCKS = 8
    REPORTED_NS = 9  # when the load was measured, by this host's clock


class Discovery(IntEnum):
    """Words of the registrar's own record, which stands before the routes and is written as they are."""

    STATE = 1
    SINCE_NS = 2
    HEARD_NS = 3  # the last good answer; 0: none yet
    NUM_FAILURES = 4  # since `HEARD_NS`


class DiscoveryState(IntEnum):
    """`Discovery.STATE`."""

    STARTING = 0
    REGISTERED = 1
    REFUSED = 2  # the server answers and refuses our registration
    UNREACHABLE = 3
    LEFT = 4


ROUTE_WORDS: Final = 64
ROUTE_BOOTSTRAP: Final = 16  # texts: 16 words each
ROUTE_UNHEALTHY: Final = 32
ROUTE_POLLER: Final = 48
DISCOVERY_URL: Final = 16
DISCOVERY_REASON: Final = 32
ROUTE_TEXT_BYTES: Final = 128
DISCOVERY_REASON_BYTES: Final = 256
METRIC_WORDS: Final = 64
END_WORDS: Final = 128  # of a row of `ends`
NUM_END_ROWS: Final = 3
DOORBELL_BYTES: Final = LINE_BYTES
RECORD_BYTES: Final = 64
RING_HEADER_BYTES: Final = 3 * LINE_BYTES
RING_HEAD: Final = LINE_BYTES // 8  # words of a ring's header
RING_TAIL: Final = 2 * LINE_BYTES // 8
RING_REFUSED: Final = RING_TAIL + 1
PROCESS_WORDS: Final = 8
LANE_WORDS: Final = 32


class RefusedNode(IntEnum):
    """Words of a record of an encode node with which this one cannot work (the bootstrap, over the oldest one)."""

    REFUSED_NS = 1  # when


REFUSED_ADDRESS: Final = 2  # words; the address of its bootstrap
REFUSED_REASON: Final = REFUSED_ADDRESS + ADDRESS_BYTES // 8
REFUSED_REASON_BYTES: Final = 256
REFUSED_WORDS: Final = REFUSED_REASON + REFUSED_REASON_BYTES // 8
NUM_REFUSED: Final = 8
LANE_ADDRESS_OFFSET: Final = 8 * 16  # language, the client: see `Lane.WANTS_NODE`


class Heard(IntEnum):
    """Words of a lane's part of the table of notices: which nodes' items its client follows, and how far its ring is.

    `FOLLOWED_NODES` words follow, one a node that is followed, which the client writes: a number that rises with each
    time that it begins anew, and the node's entry of the peer table, plus one. The poller clears them of a dead client.
    """

    READ = 0  # how many records the client has read
    WRITTEN = 1  # poller, how many it has written
    FIRST_NODE = 8


class HeardNotice(IntEnum):
    """Words of a record of such a ring, which the poller writes before it counts it."""

    WHAT = 0  # a `NoticeKind`
    FOLLOWED = 1  # the word that stands among those of `Heard`, by which it is followed
    GENERATION = 2
    NUM_BYTES = 3
    KEY_BYTES = 4


FOLLOWED_NODES: Final = 16
NOTICE_KEY: Final = 8
NOTICE_WORDS: Final = NOTICE_KEY + MAX_KEY_BYTES // 8
NOTICES_A_LANE: Final = 64
HEARD_FIRST: Final = 24  # where the records begin
HEARD_WORDS: Final = HEARD_FIRST + NOTICES_A_LANE * NOTICE_WORDS


class MissedItem(IntEnum):
    """Words of a record of a key that was asked for in vain (the bootstrap, over the oldest one)."""

    ASKED_NS = 1  # when it was asked for last
    NUM_ASKED = 2  # how often
    KEY_BYTES = 3


MISSED_KEY: Final = 8
MISSED_WORDS: Final = MISSED_KEY + MAX_KEY_BYTES // 8
NUM_MISSED: Final = 64
