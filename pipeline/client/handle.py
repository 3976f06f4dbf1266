"""What a sender and a receiver have in common: a slot of one epoch, read without waiting, and the outcome at the end.

While all slots are in use a request waits for one (`is_waiting`). Until then `slot` is `NO_SLOT`, the phase is
Bootstrapping, and the request may be given up.
"""

from __future__ import annotations

from array import array
from typing import Any, Final, Protocol

from embridge.allocator._core import PHASE_BITS, SENT_BITS, StatusTable, untrack
from embridge.allocator.control import Control
from embridge.allocator.errors import FailureCode, TransferError, failure
from embridge.allocator.records import Slot
from embridge.allocator.request_tables import SlotRecord, SlotTable
from embridge.allocator.rings import Kick
from embridge.allocator.status import TERMINAL, Phase, Progress, phase_path, split
from embridge.pipeline.client.attachment import Attachment

MAX_ROOM = (1 << 63) - 1
NO_SLOT: Final = -1
OWN_NODE_GONE: Final = "this client's own node is gone"
SUCCESS: Final = int(Phase.Success)
PHASE_SHIFT: Final = SENT_BITS + 1
EPOCH_SHIFT: Final = PHASE_SHIFT + PHASE_BITS
RISEN_MASK: Final = (1 << EPOCH_SHIFT) - 1 & ~(1 << SENT_BITS)  # of a status word: whether it is whole is nobody's here


class HandleLibrary(Protocol):
    """What a handle of either side needs of the client's library, which also leads it to the node's memory."""

    attachment: Attachment
    control: Control
    slots: SlotTable
    status: StatusTable

    def hurry(self, handle: TransferHandle) -> None:
        """End a request soon that waits for a slot and was given up."""


class TransferHandle:
    """One request of this client.

    Reading it is one memory load, and no method blocks. The caller's thread calls the methods, unless they say
    otherwise.
    """

    slot = NO_SLOT
    epoch = 0
    opened_ns = deadline_ns = 0
    reported = 0  # phase and `sent`, as in the status word
    _given_up: tuple[FailureCode, str] | None = None  # if it was given up before it had a slot
    _final: Progress | None = None
    _final_stamps: tuple[int, ...] = (0,) * 5
    _final_failure: TransferError | None = None
    driver: Any = None
    """Who drives it in place of its caller, and ends it once it has succeeded (`Driver.end_at_once`)."""
    may_end_here = False
    """Whether its driver may end it as soon as it has succeeded, on the caller's thread."""
    has_settled = False
    """Whether its client has released its slot itself."""
    aux: array[int] | None = None
    """Of a sender that may be untold: its auxiliary words."""

    def __init__(self, library: HandleLibrary, room: int) -> None:
        self._library = library
        self.room = room

    def __repr__(self) -> str:
        try:
            now = self.progress()
        except RuntimeError as error:
            return f"<{type(self).__name__} room={self.room}: {error}>"
        slot = "none" if self.slot == NO_SLOT else f"{self.slot}.{self.epoch}"
        return f"<{type(self).__name__} room={self.room} {Phase(now.phase).name} sent={now.sent} slot={slot}>"

    @property
    def _attachment(self) -> Attachment:
        return self._library.attachment

    @property
    def _control(self) -> Control:
        return self._library.control

    @property
    def _slots(self) -> SlotTable:
        return self._library.slots

    @property
    def _status(self) -> StatusTable:
        return self._library.status

    @property
    def is_waiting(self) -> bool:
        """Whether the request has no slot yet, and has not ended without one."""
        return self.slot == NO_SLOT and self._final is None

    def progress(self) -> Progress:
        """(epoch, phase, sent), from one load; after the end, the last values. `sent` counts tokens."""
        if (final := self._final) is not None:
            return final
        if self.slot == NO_SLOT:
            if not self._attachment.node_gone:
                return _WAITING
            self._settle_without_slot(FailureCode.PEER_LOST, OWN_NODE_GONE)
            assert self._final is not None
            return self._final
        word = split(self._status.load(self.slot))
        if word.epoch != self.epoch:  # whoever has the turn ended or renewed it between the two looks
            return self._final or _WAITING
        if self._attachment.node_gone and word.phase < TERMINAL:
            self._settle_as_lost()
            assert self._final is not None
            return self._final
        return word

    def has_risen(self) -> bool:
        """Whether the status is higher than when this was asked last (by `Client.poll`)."""
        library = self._library
        if self._final is None and self.slot != NO_SLOT and not library.attachment.node_gone:
            word = library.status.load(self.slot)
            risen = word & RISEN_MASK if word >> EPOCH_SHIFT == self.epoch else None
        else:
            risen = None
        if risen is None:
            now = self.progress()
            risen = now.phase << PHASE_SHIFT | now.sent
        if risen <= self.reported:
            return False
        self.reported = risen
        return True

    def poll(self) -> Phase:
        """The phase now, from one load.

        Raises RuntimeError after `Client.close`, unless the request had ended before.
        """
        return _PHASES[self.progress().phase]

    @property
    def sent_tokens(self) -> int:
        """How many rows have landed: at this destination (receiver), or at every destination (sender)."""
        return self.progress().sent

    @property
    def stamps_ns(self) -> tuple[int, ...]:
        """When the request first entered each phase, in monotonic nanoseconds; 0 for a phase that it did not enter."""
        if self._final is not None:
            return self._final_stamps
        if self.slot == NO_SLOT:
            return (self.opened_ns, 0, 0, 0, 0)
        stamps = self._status.stamps(self.slot)
        return stamps if self._final is None else self._final_stamps

    def phase_path(self) -> list[Phase]:
        """The phases entered, in order."""
        return phase_path(self.stamps_ns)

    def failure_exception(self) -> TransferError | None:
        """The exception that says why the request failed; None while it has not."""
        phase = self.poll()  # first, because it may find that the node is gone, and settle the outcome
        if self._final is None and phase == Phase.Failed:
            found = self._read_failure()
            if self._final is None:  # else the slot may have been another request's while we looked
                return found
        return self._final_failure

    def abort(self, reason: str = "aborted by the caller") -> None:
        """Give the request up, in any phase; both sides end as Failed with this reason.

        It has no effect once the request has ended.

        Raises:
            NodeGoneError: the node is gone.
            RuntimeError: after `Client.close`, or in a forked child.
        """
        self._attachment.check_usable()
        if self.progress().phase >= Phase.Success:
            return
        self.fail(FailureCode.ABORTED, str(reason))

    def fail(self, code: FailureCode, reason: str) -> None:
        """End the request as Failed for a reason of this side's own; the first reason stands (either thread)."""
        if self.slot == NO_SLOT:
            self.give_up(code, reason)
            if self.slot == NO_SLOT:  # else it has got its slot meanwhile
                if self._final is None:
                    self._library.hurry(self)
                return
        self._slots.claim_failure(self.slot, code, reason, insist=False)  # if we die now, the node goes on
        self.tell()
        self._attachment.kick_bootstrap(Kick.FAIL, self.slot, self.epoch)

    def _read_failure(self) -> TransferError:
        code = self._slots.get(self.slot, Slot.FAILURE) or FailureCode.INTERNAL
        return failure(code, self._slots.reason(self.slot) or FailureCode(code).name.lower(), self.room)

    def _settle(self) -> None:
        """Keep the outcome in the handle, because the slot may be used again from now on (whoever has the turn)."""
        if self._final is not None:
            return
        word = split(self._status.load(self.slot))
        assert word.epoch == self.epoch
        assert word.phase >= Phase.Success
        if word.phase == Phase.Failed:
            self._final_failure = self._read_failure()
        self._final_stamps = self._status.stamps(self.slot)
        self._final = word

    def _settle_without_slot(self, code: FailureCode, reason: str) -> None:
        self._final_stamps = (self.opened_ns, 0, 0, 0, self._attachment.clock())
        self._final_failure = failure(code, reason, self.room)
        self._final = Progress(0, Phase.Failed, 0)

    def _settle_as_lost(self) -> None:
        word = split(self._status.load(self.slot))
        stamps = self._status.stamps(self.slot)
        self._final_stamps = (*stamps[: Phase.Failed], self._attachment.clock())
        self._final_failure = failure(FailureCode.PEER_LOST, OWN_NODE_GONE, self.room)
        self._final = Progress(self.epoch, Phase.Failed, word.sent)

    def keep_outcome(self, word: int = 0, stamps: tuple[int, ...] = ()) -> None:
        """Settle the outcome of a request that ended before the library thread looked at it (`Client.close`); or with
        which its client has released its slot itself (whoever has the turn).
        """
        if stamps:
            self._final_stamps = stamps
            self._final = final = split(word)
            untrack(final)
            self.has_settled = True
        elif self._final is None and self.slot != NO_SLOT and self.progress().phase >= Phase.Success:
            self._settle()

    # ---- without a slot, and how it gets one

    def give_up(self, code: FailureCode, reason: str) -> None:
        """Have the request fail as soon as it has a slot, or without one; the first reason stands (either thread)."""
        if self._given_up is None:
            self._given_up = (code, reason)

    def end_without_slot(self) -> int:
        """End a given-up request as Failed, for which there was no slot (library thread, or `Client.close`).

        Returns the code of its failure.
        """
        assert self._given_up is not None
        self._settle_without_slot(*self._given_up)
        return self._given_up[0]

    def refuse(self, why: str) -> None:
        """Have every use of the node's memory raise RuntimeError that this side leads to by itself, because the client
        has left its node. The outcome of a request that has ended can still be asked for.
        """

    def prepare(self, slot: int, record: SlotRecord) -> None:
        """Write this side's words of the slot's record, before its epoch is opened (either thread)."""
        raise NotImplementedError

    def entered(self, slot: int, epoch: int) -> None:
        """Note the slot that the request has got (either thread)."""
        self.epoch = epoch
        self.slot = slot  # last, so that whoever sees the slot finds its epoch

    def catch_up(self) -> None:
        """Do in the slot what the caller did before it saw the slot.

        The caller notes what it does first and looks for the slot then, so one of the two sees the other.
        """
        if self._given_up is not None:
            self.fail(*self._given_up)

    # ---- whether the node has it

    @property
    def is_untold(self) -> bool:
        """Whether the client alone has this request."""
        return self.slot != NO_SLOT and self._final is None and self._slots.is_untold(self.slot, self.epoch)

    def tell(self) -> bool:
        """Give the request to the node's processes, if this client alone has it (either thread, R78). True: it had."""
        return self.slot != NO_SLOT and self._attachment.tell(self.room, self.slot, self.epoch)

    def release_untold(self) -> bool:
        """Release what an ended request holds, and its slot, if the node was not told of it. False: the node has to."""
        return False

    # ---- called by the library thread, or whoever has the turn

    def service(self) -> None:
        """Do what the words ask for; cheap and idempotent."""
        raise NotImplementedError

    def let_go(self) -> None:
        """Give the caller's rows back to it, because the request is over, however it ended."""

    def end_here(self) -> bool:
        """End a request that has succeeded, if that needs a look and no copy (by whoever has the turn)."""
        return False

    @property
    def is_by_hand(self) -> bool:
        """Whether the caller drives it, and has to know of each change (library thread)."""
        return False

    @property
    def wants_block(self) -> bool:
        """Whether the request waits for a block to come free."""
        return False

    def evict(self, *, copying: bool = False) -> int:
        """Drop source blocks that no destination can take now. Returns how many were dropped; a receiver has none.

        With `copying`, blocks are dropped, too, whose rows must be copied to host memory first.
        """
        return 0


_PHASES: Final = tuple(Phase)
_WAITING: Final = Progress(0, Phase.Bootstrapping, 0)
