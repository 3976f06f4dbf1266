"""The native core: shared mappings and the lock-free structures in them (C11 atomics, CPython limited API).

Every class is a *handle*: it caches pointers into a `Mapping`, keeps that mapping alive and holds no state of its own
that another process would need. A handle is used by one thread at a time. Indices are range-checked (`IndexError`),
integers that do not fit are `ValueError` (`OverflowError` where Python raises it), and so is a change of what lies in a
read-only mapping. Arrays are contiguous buffers whose items have the size that is named (u32: 4 bytes), or plain bytes.
No call blocks but `Doorbell.wait` and `Consumer.wait`.
"""

from collections.abc import Callable

from typing_extensions import Buffer

PHASE_BITS: int  # 4
EPOCH_BITS: int  # 28
SENT_BITS: int  # 32
RECORD_BYTES: int  # 64
RING_HEADER_BYTES: int  # 192: capacity line, head line, tail line
DOORBELL_BYTES: int  # 64
MAX_EPOCH: int  # 2**28 - 1
NON_TEMPORAL_BYTES: int  # moves of at least this size are written past the cache
SHELF_WAYS: int  # as in `geometry`
SHELF_STATE_SHIFT: int  # of an entry's head: lane, state, generation
SHELF_GENERATION_SHIFT: int
ITEM_WORDS: int  # as in `records`

# a row of `ends`, as `native/ends.h` draws it
END_REASON: int
END_REASONS: int
END_DELIVERY: int
END_PATHS: int
END_ROUNDS: int
END_SUCCEEDED: int
END_TIMES: int
NUM_TIMES: int
TIME_WORDS: int
END_WORDS: int
TIME_BOUNDS_NS: tuple[int, ...]

# where the handles of requests (`DirectWriter` and those that follow it) and `StatusTable.open_record` find words, and
# values of some, as `records`, `posts` and `metrics` have them
CLAIM_WORDS: int
SLOT_ROOM: int
SLOT_OPENED_NS: int
SLOT_DEADLINE_NS: int
SLOT_LENT: int
SLOT_PEER: int
SLOT_MAY_WRITE: int
METRIC_SUCCEEDED: int
PEER_WINDOW: int
MEETING_TOLD: int
HEADER_NODE_STATE: int
HEADER_BLOCK_WAITERS: int
HEADER_FAILING: int
HEADER_SLOT_WAITERS: int
NODE_STATE_READY: int
LENT_RESULT: int
SLOT_EPOCH: int
SLOT_LANE: int
SLOT_TOTAL: int
SLOT_READY: int
SLOT_REQUIRED: int
SLOT_RELEASED_EPOCH: int
SLOT_GRANTED: int
SLOT_DRAINED_BLOCKS: int
SLOT_MOVED_NS: int
SLOT_NUM_DESTINATIONS: int
SLOT_NUM_ROUNDS: int
SLOT_INIT_ASKED: int
SLOT_SESSION: int
SLOT_TOLD: int
SLOT_JOINED_BY: int
DESTINATION_PEER: int
DESTINATION_INCARNATION: int
DESTINATION_REMOTE_SLOT: int
DESTINATION_REMOTE_EPOCH: int
DESTINATION_GRANTED_TOKENS: int
DESTINATION_GRANTED_BLOCKS: int
DESTINATION_FIRST_GRANT: int
DESTINATION_SENT: int
DESTINATION_REGISTRATION: int
DESTINATION_WINDOW: int
DESTINATION_WRITTEN_BY: int
DESTINATION_WORDS: int
METRIC_WRITES: int
METRIC_BYTES_WRITTEN: int
METRIC_TOKENS_WRITTEN: int
PEER_STATE: int
PEER_NODE_ID: int
PEER_INCARNATION: int
PEER_REGISTRATION: int
MEETING_EPOCH: int
MEETING_ROOM: int
MEETING_NODE_ID: int
MEETING_INCARNATION: int
MEETING_GRANTED: int
MEETING_BOUND: int
MEETING_WORDS: int
JOINED_BY_NOBODY: int
JOINED_BY_CLIENT: int
WRITTEN_BY_CLIENT: int
TOLD_UNTOLD: int
TOLD_TOLD: int
TOLD_RELEASED: int
LOCAL_EXPOSURE: int
FINDER_SLOT_BITS: int
REGISTERED_STATE: int
LANE_STATE: int
LANE_WORDS: int
ATTACHED_LANE: int

# what `GrantBinder.bind` returns
BIND_BOUND: int  # the slot is bound to a grant
BIND_TOLD: int  # and its node is told of its request
BIND_GONE: int  # and the language node has left its entry of the peer table, or is dead

# what `UntoldOpener.open` returns
OPENER_ASKED: int  # a bit: somebody may have asked for the room
OPENER_EPOCH_SHIFT: int

# what `UntoldSender.send` returns, beside what `GrantBinder.bind` does
SENDER_FAILED: int  # a bit: the request has failed, and its destination was told nothing
SENDER_END_SHIFT: int  # of the row up to which was written

# what `UntoldReceiver.open` returns: how far it came, in the lowest bits; then how many blocks; then the epoch
RECEIVER_CAME_BITS: int
RECEIVER_EPOCH_SHIFT: int
OPENED: int  # the slot is open, and the encode node is gone
OPENED_NEAR: int  # there were no blocks
OPENED_WITH_BLOCKS: int  # they are granted, and the grant is not posted, as `GrantPoster.post` has it
OPENED_AND_POSTED: int
OPENED_AND_POSTED_LATE: int  # an encoder waits already

# what `UntoldReceiver.renew` returns, beside an epoch
RENEWED_NOT: int
RENEWED_BUT_TOLD: int

class Mapping:
    """A MAP_SHARED mapping of `size` bytes of descriptor `fd` from `offset` on (whole pages), aligned to `alignment`
    (over-mapped beyond a page).

    Exports the buffer protocol (writable unless `writable=False`); every view keeps the mapping. It is unmapped with
    the last reference, or let go of before by `close` or `discard`. With an `address` it lies there or (OSError)
    nowhere. The descriptor may be closed after construction. Raises OSError, also (ENXIO) where the file is shorter
    than `offset + size`: touching what lies beyond it would be a SIGBUS.
    """

    def __init__(
        self,
        fd: int,
        size: int,
        *,
        offset: int = 0,
        writable: bool = True,
        alignment: int = 4096,
        address: int = 0,
    ) -> None: ...
    @property
    def size(self) -> int: ...
    @property
    def address(self) -> int: ...
    def populate(self, offset: int, size: int) -> None:
        """Touch the pages without the GIL and without changing a byte. Raises OSError."""
    def lock(self, offset: int, size: int) -> int:
        """Lock the pages that this mapping has, and each that it gets (mlock2, MLOCK_ONFAULT); 0, or the errno.

        What the limits allow is asked for all of them at once. `populate` gets the rest of the pages.
        """
    def advise_huge(self) -> int:
        """madvise(MADV_HUGEPAGE); 0, or the errno."""
    def close(self) -> int:
        """Let the memory go as soon as no buffer is exported, and take no new ones (BufferError) and no handles.

        Returns how many buffers are exported still; 0: it is gone, and handles find zeroed memory of this process's
        own.
        """
    def discard(self) -> None:
        """Let the memory go now. Buffers and handles that are left find zeroed memory of this process's own instead."""
    def abandon(self) -> None:
        """Let the memory go now, in a process in which nothing looks there any more: to do so is a SIGSEGV. In return
        it succeeds also where a machine promises no memory beyond what it has.
        """
    def __buffer__(self, flags: int, /) -> memoryview: ...

class Words:
    """`count` atomic unsigned 64-bit words, `stride` bytes apart (a multiple of 8).

    Loads acquire and stores release: who loads a word sees what was written before it was stored.
    """

    def __init__(self, mapping: Mapping, offset: int, count: int, stride: int = 8) -> None: ...
    def __len__(self) -> int: ...
    def load(self, index: int, /) -> int: ...
    def store(self, index: int, value: int, /) -> None: ...
    def fill(self, index: int, count: int, value: int, /) -> None:
        """Store `value` in `count` words from `index` on, one after the other: for words that nobody looks at."""
    def sum(self, index: int, count: int, step: int, /) -> int:
        """The sum modulo 2**64 of `count` words, every `step`-th from `index` on, each as it is when it is loaded."""
    def load_many(self, index: int, count: int, /) -> list[int]:
        """`count` words from `index` on, loaded one after the other. Raises ValueError where they are not all there."""
    def store_many(self, index: int, values: Buffer, /) -> None:
        """Store u64 `values` from `index` on, one after the other. Raises IndexError, with nothing stored, where they
        do not fit.
        """
    def add(self, index: int, value: int, /) -> int:
        """fetch-and-add modulo 2**64; returns the value before."""
    def set_bits(self, index: int, bits: int, /) -> int:
        """fetch-and-or; returns the value before."""
    def clear_bits(self, index: int, bits: int, /) -> int:
        """fetch-and-and with the complement; returns the value before."""
    def raise_to(self, index: int, value: int, /) -> bool:
        """Store `value` if it is greater than what stands there; True if it was."""
    def compare_exchange(self, index: int, expected: int, value: int, /) -> bool: ...
    def changed_rows(
        self, row_words: int, first: int, count: int, pages: Buffer, num_pages: int, seen: Buffer, out: Buffer, /
    ) -> int:
        """Compare `count` words from the `first` on of each row of the pages with what `seen` holds of them (u64, one a
        row, zeroes at the beginning, updated here); the rows that differ go into `out` (u32), until that is full. The
        words are rows of `row_words`, 64 of them a page of `pages` (u32), with a stride of 8. Returns how many. A row
        is held as a hash: words that differ are overlooked once in 2**64."""

class StatusTable:
    """One status word a slot: `epoch:28 | phase:3 | whole:1 | sent:32`, which only ever increases, with stamps and
    dirty bits.

    `stamps`: 5 u64 a slot. They are packed with their epoch, so that a late writer of an old one leaves no time in a
    new one: read them with `stamps()`. `dirty`: `num_views` bitmaps of `num_slots / 64` u64 each, one after the other;
    `num_slots` is a multiple of 64. A slot's page is its bitmap word: `slot // 64`.
    """

    def __init__(
        self, mapping: Mapping, words_offset: int, stamps_offset: int, dirty_offset: int, num_slots: int, num_views: int
    ) -> None: ...
    def load(self, slot: int, /) -> int: ...
    def epoch(self, slot: int, /) -> int:
        """The epoch of the word; so for the next two, each by a load of its own."""
    def phase(self, slot: int, /) -> int: ...
    def sent(self, slot: int, /) -> int: ...
    def stamps(self, slot: int, /) -> tuple[int, int, int, int, int]:
        """The monotonic ns of the first entry into each phase of the slot's current epoch (0: not entered)."""
    def open(self, slot: int, now_ns: int, /) -> int:
        """Begin the next epoch: word = (epoch + 1, phase 0, sent 0), stamps reset; no dirty bit is set. Returns the
        epoch, or 0 when the slot's epochs are used up (the slot is retired; nothing changed). Only the slot's owner
        calls it."""
    def open_record(
        self,
        slot: int,
        now_ns: int,
        records: Words,
        record: Buffer,
        is_untold: bool,
        blanks: tuple[Words, ...],
        claims: Words | None,
        /,
    ) -> int:
        """Raise the slot's `RELEASED_EPOCH` to the last epoch; set what `blanks` (at most 2) have of the slot to 0;
        write the other words of its record (u64); shut its claim for the lane and the length that the record names; say
        that the record is about the next epoch; then `open`. `is_untold`: `TOLD` names that epoch as untold. Each of
        the `Words` has as many words of every slot. A caller that is killed in between leaves a slot that nobody takes
        for open. Returns as `open`. Only the slot's owner calls it."""
    def advance(
        self, slot: int, epoch: int, phase: int, sent: int, now_ns: int, is_told: bool = False, /
    ) -> bool:
        """Compare-and-swap until the word is (epoch, phase, sent), or refuse: a word of another epoch (0 is nobody's),
        a terminal phase (3, 4), a value that is not greater, or Failed where the word is whole, unless the encode node
        has told so or is lost (`is_told`). A whole word stays whole until its end. On success stamps the first entry
        of `phase` and sets the slot's dirty bit in every view."""
    def count_success(
        self, slot: int, epoch: int, path: int, rounds: int, ends: Words, row: int, /
    ) -> bool:
        """Count a request that has succeeded in a row of `ends` (`END_WORDS` words each): its path, its tokens, its
        rounds, and by its stamps how long it took. False, and nothing is counted: the slot has another epoch, or no
        success."""
    def mark(self, slot: int, view: int, /) -> None:
        """Set the slot's dirty bit in one view, with no change of the word."""
    def changed(self, view: int, pages: Buffer, num_pages: int, out: Buffer, words: Buffer = ..., /) -> int:
        """Take (exchange with 0) the dirty words of the first `num_pages` of `pages` (u32) in `view`; the dirty slots
        go into `out` (u32, at least 64), and their status words, as they are then, into `words` (u64, as many). Stops
        taking before a page whose 64 bits might not fit. Returns how many."""
    def compare(self, pages: Buffer, num_pages: int, seen: Buffer, out: Buffer, /) -> int:
        """Compare every word of the pages with `seen` (u64, `num_slots` of them, updated here); those that differ go
        into `out` (u32), until that is full. The slow, certain look: a dirty bit is a hint that a dead writer may have
        left unset. Returns how many."""

class Records:
    """The atomic words of `rows` records, or with `columns` of `rows * columns`, of `words` unsigned 64-bit words each.

    `place` names a record by its row, or its row and its column, each an IndexError where there is none. Loads and
    stores are those of `Words`.
    """

    def __init__(self, mapping: Mapping, offset: int, rows: int, words: int, columns: int = 0) -> None: ...
    def get(self, *place_and_field: int) -> int: ...
    def set(self, *place_field_and_value: int) -> None: ...
    def raise_to(self, *place_field_and_value: int) -> bool:
        """Store the value if it is greater than what stands there; True if it was."""
    def get_all(self, *place: int) -> list[int]:
        """The words of a record, loaded one after the other."""

class SlotLooks:
    """Says which request a slot has, by its words and its client's lane, loaded in that order (`native/current.h`).

    A slot or an epoch that there cannot be is none of these. `slots`, `lanes` and `pages` have as many words of each.
    Raises TypeError and ValueError where they are none or too few.
    """

    def __init__(self, status: StatusTable, slots: Words, lanes: Words, pages: Words) -> None: ...
    def is_open(self, slot: int, epoch: int, /) -> bool:
        """Whether status word and record are both about this epoch, and it has not been released, whoever has it."""
    def is_current(self, slot: int, epoch: int, /) -> bool:
        """Whether it is open, and its client has told the node's processes of it or is dead (R78)."""
    def is_live(self, slot: int, epoch: int, /) -> bool:
        """Whether it is current, and has not ended."""
    def has_client(self, slot: int, /) -> bool:
        """Whether the client of a slot's lane lives."""
    def open_in(self, room: int, /) -> list[tuple[int, int]]:
        """(slot, epoch) of the open requests of a room, by a look at the slots of all leased pages."""

class BlockCells:
    """One owner cell a block, 64 bits: `generation:18 | epoch:28 | slot:16 | state:2`.

    State 0 is free, 1 owned, 2 exposed, 3 quarantined. A free cell keeps its generation (epoch and slot are 0); each
    acquire takes the next one. One CAS moves a block, so a kill between any two instructions leaves it free or owned by
    someone known. `exposure`: one u64 a block, the session (and peer) to which the block was last exposed.
    """

    def __init__(self, mapping: Mapping, cells_offset: int, exposure_offset: int, num_blocks: int) -> None: ...
    def __len__(self) -> int: ...
    def acquire(self, slot: int, epoch: int, want: int, lowest: int, out: Buffer, at: int, /) -> int:
        """Take up to `want` free blocks of index >= `lowest` for (slot, epoch), a run of neighbours where there is one,
        indices ascending within each run, into `out` (u32) from position `at`. Returns how many: fewer when memory is
        short. A run that another process freed moments ago may be overlooked for one of other pieces; a free block is
        not overlooked."""
    def find_run(self, lowest: int, length: int, /) -> int:
        """The first block of the lowest run of `length` free blocks of index >= `lowest`, by a look at all cells; -1:
        there is none. Nothing is taken, so somebody else may have them by now."""
    def expose(self, indices: Buffer, first: int, count: int, slot: int, epoch: int, exposure: int, /) -> int:
        """Owned (or already exposed) -> exposed, for each of `indices[first:first + count]` (u32) that (slot, epoch)
        holds; the side table's word is stored before the cell changes. Returns how many now stand exposed."""
    def release(self, indices: Buffer, first: int, count: int, slot: int, epoch: int, /) -> int:
        """Owned or exposed -> free, for each that (slot, epoch) holds. Returns how many; a second time: 0."""
    def quarantine(self, indices: Buffer, first: int, count: int, slot: int, epoch: int, /) -> int:
        """Exposed -> quarantined, owned -> free. Returns how many are quarantined by this call."""
    def reclaim(self, slot: int, epoch: int, quarantine_exposed: bool, /) -> int:
        """Over the whole table, for (slot, epoch): owned -> free; exposed -> quarantined, or free. Quarantined ones
        stay. Returns how many cells it changed."""
    def end_quarantine(self, slot: int, epoch: int, /) -> int:
        """Quarantined -> free for (slot, epoch), over the whole table. Returns how many."""
    def end_exposure(self, mask: int, value: int, below: int, /) -> int:
        """Quarantined -> free for every block whose exposure word e has `e & mask == value` and `e & ~mask < below`.
        Returns how many."""
    def cell(self, index: int, /) -> tuple[int, int, int, int]:
        """(state, slot, epoch, generation); loaded after whatever this thread has read before, the block's bytes among
        it.
        """
    def exposure(self, index: int, /) -> int: ...
    def counts(self) -> tuple[int, int, int, int]:
        """(free, owned, exposed, quarantined); their sum is always the number of blocks."""
    def num_free(self, limit: int, /) -> int:
        """Count free blocks, but stop at `limit`."""

def format_ring(mapping: Mapping, offset: int, capacity: int) -> None:
    """Write an empty ring's header: capacity (a power of two, 2 to 2**20), head and tail 0. `offset` is 64-byte
    aligned."""

class Producer:
    """The writing end of a ring; one process at a time. `head` and `tail` are 64-bit and only rise.

    Both ends raise ValueError for a ring whose capacity is not one, and RuntimeError when head and tail are further
    apart than the capacity: its header is damaged, and nothing was written or read.
    """

    def __init__(self, mapping: Mapping, offset: int) -> None: ...
    def push(self, *words: int) -> bool:
        """One record of up to eight u64 (the rest 0). False when full, which the ring's `RING_REFUSED` counts."""
    def push_bytes(self, records: Buffer, /) -> int:
        """As many whole 64-byte records of the buffer as fit, in one step. Returns how many; the ring's
        `RING_REFUSED` counts the others, since it was made: it outlives its writer."""
    def room(self) -> int: ...
    @property
    def capacity(self) -> int: ...

class Consumer:
    """The reading end: peek, work, commit. A record is consumed when its work is done: a restarted reader sees it."""

    def __init__(self, mapping: Mapping, offset: int) -> None: ...
    def peek(self, most: int, /) -> list[tuple[int, int, int, int, int, int, int, int]]: ...
    def peek_bytes(self, most: int, /) -> bytes: ...
    def commit(self, count: int, /) -> None:
        """ValueError when `count` exceeds what is pending."""
    def pending(self) -> int: ...
    def wait(self, doorbell: Doorbell, timeout_s: float, spin_s: float = 20e-6) -> bool:
        """Look once, spin, then sleep on the doorbell until a record is there or the time is over (or a signal: returns
        early); without the GIL after the first look. Does not spin when this thread may run on one core only. A timeout
        of 0 or less only looks. True if a record is there."""
    @property
    def capacity(self) -> int: ...

def pending_rings(rings: tuple[Consumer, ...], /) -> list[int]:
    """Which of these rings have a record, by their places; looked at one after the other."""

class Doorbell:
    """A 64-byte line that wakes one waiter: `sequence:u32 | state:u32 | spared:u32`.

    The state's lower two bits: 0 awake, 1 asleep on the futex, 2 armed eventfd; above them the number of the arming.
    `ring` costs a system call only when the waiter sleeps (futex wake) or has armed its eventfd (8 bytes written, once
    an arming but for ringers that cross). A waiter notes `sequence()`, looks for work, and waits with what it noted: a
    ring in between ends the wait at once. A ringer killed inside `ring` leaves a state that any later ring wakes.

    `event_fd` is duplicated: the caller may close its own.
    """

    def __init__(self, mapping: Mapping, offset: int, event_fd: int = -1) -> None: ...
    def sequence(self) -> int: ...
    def ring(self) -> bool:
        """True: the waiter slept, and was woken. False: it is awake, or has armed an eventfd that this process has
        not.
        """
    def ring_client(self, library: Doorbell, /) -> None:
        """Ring, as a caller's bell, because a request of his client has succeeded. His library thread's is rung, too,
        unless he slept on the futex, or is awake while it is spared.
        """
    def wait(self, seen: int, timeout_s: float, spin_s: float = 20e-6) -> int:
        """Without the GIL, until the sequence differs from `seen` or the time is over (or a signal: returns early);
        returns the sequence. A timeout of 0 or less only looks."""
    def arm(self, seen: int) -> bool:
        """Have the next ring written to the eventfd. False, and not armed, when the sequence is no longer `seen`; the
        eventfd may be readable all the same, from a ring that crossed."""
    def disarm(self) -> None: ...
    def spare(self, is_spared: bool, /) -> None:
        """Say, as the waiter, whether a writer that has ended a request may leave this bell alone while the caller of
        the same client is awake."""

class Turn:
    """What one thread of a process has at a time (`TurnTaker`). Nobody waits for it."""

    def __init__(self) -> None: ...

class TurnTaker:
    """Takes a turn for a `with` block, and gives it back however the block ends, a signal handler's exception included.

    Entering says whether it has it: False while another taker does, of this thread or another. One block each.
    """

    def __init__(self, turn: Turn) -> None: ...
    def __enter__(self) -> bool: ...
    def __exit__(self, *of_exception: object) -> None: ...

def claim_take(claims: Words, slot: int, epoch: int, writer: int, /) -> bool:
    """Move a slot's claim (two words a slot) from open of that epoch to writing, by `writer` (u32)."""

def claim_give_back(claims: Words, slot: int, epoch: int, writer: int, /) -> bool:
    """Move a slot's claim from writing, by `writer`, to open. False: it was revoked, and ends, or it is another's."""

class DirectWriter:
    """Writes rows of an encode node's requests into blocks of one language node of this host (`native/direct.h`).

    `slots`, `destinations`, `grants`, `metrics` and `status` are the encode node's, `claims`, `there` (status words)
    and `payload` the language node's. Several threads may use it at the same time.
    """

    def __init__(
        self,
        slots: Words,
        destinations: Words,
        grants: Words,
        metrics: Words,
        claims: Words,
        status: StatusTable,
        there: StatusTable,
        payload: Mapping,
        writer: int,
        slot_words: int,
        aux_at: int,
        window_blocks: int,
        num_destinations: int,
        metrics_at: int,
        block_size: int,
        num_blocks: int,
        aux_offset: int,
        aux_bytes: int,
        bells: int,
        num_lanes: int,
        clock: Callable[[], int],
    ) -> None:
        """`slot_words`: words of a slot's record, whose auxiliary words (`aux_bytes`) lie `aux_at` bytes behind its
        beginning, and `aux_offset + block * aux_bytes` in the payload. `metrics_at`: where the row of counters begins.
        `bells`: where the bells of the language node's lanes begin in the mapping of `there`, those of their callers
        first.
        Raises ValueError where a table is too small for its slots.
        """
    def write(
        self,
        slot: int,
        epoch: int,
        total: int,
        columns: Buffer,
        spans: Buffer,
        is_held: bool = False,
        destination: int = 0,
        /,
    ) -> int:
        """Write what is granted of these rows of (slot, epoch), which has `total`, to one destination, under the claim
        of the destination's slot. Without the GIL, if there are many bytes.

        `columns`: u64 pairs, of each buffer (its offset in the payload, bytes of a row). `spans`: u64, of rows that lie
        somewhere as one (first row, end row, and for each column the address of the first row), in order and without a
        gap; what lies at the addresses must stay until this returns. Whom it concerns there is rung. `is_held`: the
        claim was taken before (`claim_take`), and is given back here unless this returns 0. Rows that lie where they
        are to be are not copied.

        Returns up to which row; negative where the request has failed, so that its destination was told nothing; 0
        where nothing was written: the request has ended before, the claim is not to be had, nothing is granted, these
        are not the next rows, or it is closed. Raises IndexError for a granted block that is outside of the pool.
        """
    def follow(self, slot: int, epoch: int, total: int, destination: int, /) -> bool:
        """Tell one destination of the Success of (slot, epoch), which another write has decided, and ring it. False
        where it has heard, or nothing is decided."""
    def watch(self, before: Callable[[int, int, int, int, int], object] | None, /) -> None:
        """Have `before(step, slot, a, b, c)` called before each step of each write from now on (`enum direct_step`),
        and blocks copied one by one. If it raises, the write ends there, but for giving the claim back, of which
        `before` is asked, too; then `write` raises the first of these.
        """
    def close(self) -> bool:
        """Have nobody begin to write from now on. True once nobody is in `write`."""

class GrantBinder:
    """Finds grants that one language node of this host has posted, and binds requests of an encode node to them
    (`native/bind.h`).

    `slots`, `destinations`, `grants`, `peers`, `tombstones` and `finders` are the encode node's, `claims`, `meetings`,
    `posts` and `windows` the language node's. Several threads may use it at the same time.
    """

    def __init__(
        self,
        slots: Words,
        destinations: Words,
        grants: Words,
        peers: Words,
        tombstones: Words,
        finders: Words,
        claims: Words,
        meetings: Words,
        posts: Words,
        windows: Words,
        slot_words: int,
        num_destinations: int,
        window_blocks: int,
        peer_words: int,
        num_peer_slots: int,
        window_there: int,
        block_size: int,
        num_blocks: int,
        node_id: int,
        incarnation: int,
        node_id_there: int,
        incarnation_there: int,
    ) -> None:
        """`window_blocks` and `window_there`: words of `grants` and of `windows` a slot. `block_size` and `num_blocks`
        are those of the language node.
        Raises ValueError where a table is too small.
        """
    def bind(self, peer: int, room: int, slot: int, epoch: int, /) -> int:
        """Look for a grant of the room, and bind (slot, epoch) to it as its first destination. `peer`: the language
        node's entry of the peer table.

        Returns 0 where there is none, or the slot has a destination; else `BIND_BOUND`, and what else is so.
        """
    def watch(self, before: Callable[[int], object] | None, /) -> None:
        """Have `before(step)` called before each change that `bind` makes from now on (`enum bind_step`). If it
        raises, nothing is changed any more, and `bind` raises that.
        """

class GrantPoster:
    """Posts the grants of requests of one language node's client where encoders of its host look, and takes them back
    when the requests are over (`native/grant.h`).

    All tables are the language node's. One thread at a time, as with `cells`.
    """

    def __init__(
        self,
        status: StatusTable,
        cells: BlockCells,
        slots: Words,
        windows: Words,
        claims: Words,
        meetings: Words,
        posts: Words,
        slot_words: int,
        window_blocks: int,
    ) -> None:
        """`window_blocks`: words of `windows` a slot. Raises ValueError where a table is too small."""
    def post(
        self, slot: int, epoch: int, room: int, node_id: int, incarnation: int, blocks: Buffer, tokens: int,
        now_ns: int, /,
    ) -> int:
        """Grant `blocks` (uint32) to a request that has none yet, for `tokens` rows, to the clients of an encode node.

        1: it is posted; 2: it is, and an encoder waits for it, which may or may not look once more; 0: it is recorded,
        and the encode node has to be sent it.
        """
    def release(self, slot: int, epoch: int, room: int, now_ns: int, /) -> bool:
        """Give back the blocks, the post and the slot of a request that has succeeded. False, perhaps with its blocks
        free, where it has not, or the node has it (R78).
        """
    def watch(self, before: Callable[[int], object] | None, /) -> None:
        """Have `before(step)` called before each change that the others make from now on (`enum grant_step`). If it
        raises, nothing is changed any more, and they raise that.
        """

class UntoldOpener:
    """Opens untold requests of an encode node's client (`native/untold.h`). Either thread of the client."""

    def __init__(
        self,
        status: StatusTable,
        slots: Words,
        destinations: Words,
        staging: Words,
        asked: Words,
        untold: Words,
        finished: Words,
        lane: int,
        aux_at: int,
        aux_words: int,
    ) -> None:
        """`lane`: the client's. The auxiliary words of a slot's record are `aux_words`, from its `aux_at`-th word on.
        Raises ValueError where a table is too small for its slots.
        """
    def open(self, slot: int, room: int, opened_ns: int, deadline_ns: int, aux: Buffer, /) -> int:
        """Write a slot's record, and open its next epoch, of which no process of the node is told. `aux`: int32.

        Returns the epoch from bit `OPENER_EPOCH_SHIFT` on, and `OPENER_ASKED` where somebody may have asked for the
        room (R80); 0: its epochs are used up.
        """

class UntoldSender:
    """Sends untold requests of an encode node's client to one language node of this host, and releases them
    (`native/untold.h`): what a `GrantBinder` and a `DirectWriter` do, in one call.
    """

    def __init__(
        self, writer: DirectWriter, binder: GrantBinder, columns: Buffer, finished: Words, untold: Words, ends: Words
    ) -> None:
        """`columns` as `DirectWriter.write` takes them; `ends`: the row in which successes are counted. Raises
        ValueError or IndexError for what does not fit.
        """
    def send(
        self, peer: int, room: int, slot: int, epoch: int, total: int, may_leave: bool, first: int, end: int, /,
        *at: int,
    ) -> int | tuple[int, tuple[int, int, int, int, int]]:
        """Bind an open request that has no destination yet to the grant of its room, and write rows [first, end) as far
        as they are granted; `at` are the addresses of the first row of each column. Whom it concerns there is rung.

        Returns 0 where there is no grant; else what `GrantBinder.bind` does, with the row up to which was written from
        bit `SENDER_END_SHIFT` on, and `SENDER_FAILED` where the request has failed. Nothing is written where the
        language node is gone. If it `may_leave`, and all rows are there, it leaves as `leave` does, and returns what
        that does unless it is None. Raises as `DirectWriter.write`.
        """
    def leave(self, room: int, slot: int, epoch: int, /) -> tuple[int, tuple[int, int, int, int, int]] | None:
        """Release the slot of a request that has succeeded, whose destination has ended, and of which no process of
        either node was told (R80), and count it. Returns its status word, and when it entered each phase; None: it is
        not so.
        """
    def watch(self, before: Callable[[int], object] | None, /) -> None:
        """Have `before(step)` called before each change that `leave` makes from now on (`enum leave_step`). If it
        raises, nothing is changed any more, and `leave` raises that.
        """

class UntoldReceiver:
    """Opens, grants, lends, renews and releases untold requests of a language node's client (`native/untold.h`).

    Whoever has the turn calls it. Who watches the `GrantPoster` sees each change.
    """

    def __init__(
        self,
        poster: GrantPoster,
        status: StatusTable,
        header: Words,
        peers: Words,
        fetches: Words,
        lanes: Words,
        metrics: Words,
        ends: Words,
        lane: int,
        lent_at: int,
        metrics_at: int,
        peer_words: int,
        fetch_words: int,
        slot_words: int,
        address_at: int,
        block_size: int,
    ) -> None:
        """`lent_at`: which of the words of `lanes` counts what the lane has lent. `metrics_at`: where the row of
        counters begins. `address_at`: at which word of a slot's record the encode node's address begins. Raises
        ValueError where a table is too small.
        """
    def open(
        self, slot: int, room: int, opened_ns: int, deadline_ns: int, address: Buffer, peer: int, node_id: int,
        incarnation: int, rows: int, enough: int, out: Buffer, /,
    ) -> int:
        """Open a slot for a request at an encode node (its entry in the peer table, and who it is), take as many blocks
        as `out` (uint32) has room for, and grant them for `rows` rows at most. Nothing happens unless the node takes
        requests, nobody waits for blocks or slots, and `enough` blocks are free.

        Returns 0 where nothing has happened; else the epoch from bit `RECEIVER_EPOCH_SHIFT` on, how many blocks from
        bit `RECEIVER_CAME_BITS` on, and how far it came (`OPENED` and the next).
        """
    def lend(self, slot: int, epoch: int, blocks: int, enough: int, /) -> int:
        """Say that all the blocks of a request that has succeeded are lent, and how many (R35). Returns how many grants
        it has had; 0, and nothing has happened: it was granted others, somebody waits, or fewer are free.
        """
    def renew(self, slot: int, epoch: int, room: int, now_ns: int, /) -> int:
        """Take back the grant of a request to which nobody has come, and open the slot in its next epoch for the same
        request, told and with nothing granted (R34). Returns that epoch.

        `RENEWED_NOT`, and nothing has happened: an encoder is bound to the grant, nothing is posted, or the node has
        the request. `RENEWED_BUT_TOLD`: its blocks are back, but the node was told of it meanwhile, and has it as it
        is.
        """
    def release(
        self, slot: int, epoch: int, room: int, lent: int, now_ns: int, /
    ) -> tuple[int, tuple[int, int, int, int, int]] | None:
        """`GrantPoster.release`, and `lent` blocks count as lent no more. Returns the request's status word, and when
        it entered each phase; None where it is not released.
        """

def copy(destination: Buffer, source: Buffer, moves: Buffer, count: int, /) -> int:
    """`count` moves of (destination offset, source offset, bytes), int64 triples, one after the other, without the GIL
    (but for a few KiB); returns the bytes moved.

    Every move is range-checked before the first byte moves (IndexError). Large moves are written past the cache."""

def checksum(memory: Buffer, columns: Buffer, rows: int, checksum: int, /) -> int:
    """CRC-32C of rows, going on from `checksum` (0: from nothing), without the GIL (but for a few KiB).

    `columns`: up to 16 pairs (offset of the first row, bytes of each row), int64. Row by row, of each row one column
    after the other: so the checksum of the first rows goes on to that of all. Every range is checked first
    (IndexError).
    """

class PlainRows:
    """Finds rows that need no second look: tensors of that very type, dense, contiguous and in host memory."""

    def __init__(self, tensor_type: type, kinds: tuple[tuple[object, tuple[int, ...]] | None, ...]) -> None:
        """`kinds`: of each buffer in the order of `span` its dtype and the shape of a row, None where rows have no such
        buffer. Raises ValueError where the first is None.
        """
    def span(self, first: int, /, *tensors: object) -> list[int] | None:
        """The rows from `first` on, as `DirectWriter.write` takes them: the first and the end, and where each buffer's
        first row lies, in that order. None: they are to be looked at more closely, and may be wrong.
        """

def untrack(*objects: object) -> None:
    """Have the collector pass these objects over: they are freed with their last use, but not where they are in a
    cycle.
    """

def track(*objects: object) -> None:
    """Have the collector look at these objects again, which `untrack` was called for."""

def set_parent_death_signal(signal: int, /) -> None:
    """prctl(PR_SET_PDEATHSIG) for this process; the caller then checks that its parent is still the one it knew."""

def has_hung_up(fd: int, /) -> bool:
    """Whether the other end of a socket has hung up, or has an error to tell. It takes nothing out of the socket, does
    not wait, and keeps the GIL, so no other thread takes a turn meanwhile. Raises ValueError: `fd` is negative.
    """

class Shelf:
    """The entries and cells of a shelf, for whoever publishes, makes room and buries (`native/shelf.h`).

    A key is its `hash` (16 bytes) and the `key` itself (at most 256). `generation` is that of a publication, since it
    began; an item's `number` is drawn when it is shown, and orders the items of a key. No call waits.
    """

    def __init__(
        self, record: Words, heads: Words, items: Words, cells: Words, uses: Words, ledgers: Words, ledger_words: int
    ) -> None:
        """`ledger_words`: from one reader's ledger to the next one's. Raises ValueError where a table is too small."""
    def begin(
        self,
        hash: bytes,
        key: bytes,
        lane: int,
        blocks: int,
        bytes: int,
        rows: int,
        width: int,
        dtype: int,
        expires_ns: int,
        now_ns: int,
        replaces: bool,
        /,
    ) -> tuple[int, int, int, int, int, int]:
        """Have an entry and a run of blocks for an item, evicting others if need be. `expires_ns`: 0, or when it is
        seen no more.

        Returns (answer, entry, generation, first block, number, evicted items); the answer is one of
        `allocator.shelf.Answer`, the number that of the item that is there already.
        """
    def show(self, entry: int, generation: int, lane: int, /) -> int:
        """Make an item that is complete visible, and retire the older ones of its key.

        Returns its number; 0: its entry was taken from this lane, which somebody has buried.
        """
    def drop(self, entry: int, generation: int, lane: int, replaces: bool, /) -> None:
        """Break a publication off: nobody writes into its blocks any more."""
    def unpublish(self, hash: bytes, key: bytes, /) -> int:
        """Retire all items of a key; returns how many."""
    def find(self, hash: bytes, key: bytes, now_ns: int, /) -> int:
        """The number of the item that a reader would get; 0: it is not published."""
    def clear(self) -> int:
        """Hide all whose publication has begun before now; returns the floor."""
    def sweep(self) -> int:
        """Free what is retired and not pinned; returns how many entries came free."""
    def bury_publisher(self, lane: int, /) -> int:
        """Retire what this lane's client was publishing, which can write no more; returns how many items."""
    def bury_reader(self, reader: int, /) -> None:
        """Clear the ledger of a reader that can read no more."""
    def watch(self, before: Callable[[int], object] | None, /) -> None:
        """Have `before(step)` called before each change that a call makes from now on (`enum shelf_step`). If it
        raises, nothing is changed any more, and the call raises that.
        """

class ShelfReader:
    """Finds and pins the items of a shelf for one process, whose threads may all use it (`native/shelf_pins.h`)."""

    num_pins: int
    """How many of its `Pin`s there are."""

    def __init__(
        self,
        record: Words,
        heads: Words,
        items: Words,
        cells: Words,
        uses: Words,
        ledger: Words,
        rows: Mapping,
        block_bytes: int,
        connection: object,
    ) -> None:
        """`uses` and this reader's `ledger` are writable. `connection` is let go of after the last Pin.
        Raises ValueError where a table is too small.
        """
    def pin(self, hash: bytes, key: bytes, now_ns: int, /) -> Pin | None:
        """The newest item of a key, which stays where it is while the Pin, or a view of it, is there; None: it is not
        published. Raises ValueError for an item that does not lie on the shelf.
        """
    def adopt(self, entry: int, generation: int, /) -> Pin | None:
        """The pin of an item that a process before this one has left in this ledger; None: there is none (R85).
        Raises IndexError for an entry that there is not.
        """
    def forget_others(self) -> None:
        """Take away the pins that a process before this one has left, and that nobody has adopted (R85)."""
    def watch(self, before: Callable[[int], object] | None, /) -> None:
        """As `Shelf.watch`."""

class Pin:
    """One pinned item: a buffer of the bytes of its rows, where they lie; any thread may let go of it.

    The memory is mapped read-only. Who asks for a writable buffer gets one, because torch knows no others: a store to
    it is a SIGSEGV.
    """

    number: int
    rows: int
    width: int
    dtype: int
    bytes: int
    first: int
    """The block of the shelf at which its rows begin."""
    entry: int
    generation: int
    """Of its entry: with it what the pin says."""
    def __buffer__(self, flags: int, /) -> memoryview: ...
