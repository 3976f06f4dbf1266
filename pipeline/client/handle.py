"""What a sender and a receiver have in common: a slot of one epoch, read without waiting, and its outcome once it is
over.

While all slots are in use a request waits for its own (`is_waiting`): `slot` is then `NO_SLOT`, its phase is
Bootstrapping, and it may be given up.
"""

from __future__ import annotations

from typing import Final, Protocol

from embridge.allocator.errors import FailureCode, TransferError, failure
from embridge.allocator.records import Slot
from embridge.allocator.rings import Kick
from embridge.allocator.status import Phase, Progress, phase_path, split
from embridge.pipeline.client.attachment import Attachment
from embridge.pipeline.leaving import refuse

MAX_ROOM = (1 << 63) - 1
NO_SLOT: Final = -1
OWN_NODE_GONE: Final = "this client's own node is gone"
LED_TO_MEMORY = ("_control", "_slots", "_status", "_windows", "_sessions", "_dsts", "_staging")


class HandleLibrary(Protocol):
    """What a handle of either side needs of the client's library."""

    attachment: Attachment

    def hurry(self, handle: TransferHandle) -> None:
        """Have a request that waits for a slot, and was given up, end soon."""


class TransferHandle:
    """One request of this client.

    Reading it is one memory load; no method blocks. The caller's thread calls, unless it says who.
    """

    def __init__(self, library: HandleLibrary, room: int) -> None:
        self._library = library
        self._attachment = library.attachment
        self._control = library.attachment.control
        self._slots = self._control.slots
        self._status = self._control.status
        self.slot = NO_SLOT
        self.epoch = 0
        self.room = room
        self.opened_ns = 0
        self.deadline_ns = 0
        self.reported = (0, 0)
        self._given_up: tuple[FailureCode, str] | None = None  # before it had a slot
        self._final: Progress | None = None
        self._final_stamps: tuple[int, ...] = (0,) * 5
        self._final_failure: TransferError | None = None

    def __repr__(self) -> str:
        try:
            now = self.progress()
        except RuntimeError as error:
            return f"<{type(self).__name__} room={self.room}: {error}>"
        slot = "none" if self.slot == NO_SLOT else f"{self.slot}.{self.epoch}"
        return f"<{type(self).__name__} room={self.room} {Phase(now.phase).name} sent={now.sent} slot={slot}>"

    @property
    def is_waiting(self) -> bool:
        """Whether it has no slot yet, and has not ended without one."""
        return self.slot == NO_SLOT and self._final is None

    def progress(self) -> Progress:
        """(epoch, phase, sent), from one load; after the end, what it was then. `sent` counts tokens."""
        if self._final is not None:
            return self._final
        if self.slot == NO_SLOT:
            if not self._attachment.node_gone:
                return _WAITING
            self._settle_without_slot(FailureCode.PEER_LOST, OWN_NODE_GONE)
            assert self._final is not None
            return self._final
        word = split(self._status.load(self.slot))
        if word.epoch != self.epoch:  # the library thread ended it between the two looks
            assert self._final is not None
            return self._final
        if word.phase < Phase.Success and self._attachment.node_gone:
            self._settle_as_lost()
            assert self._final is not None
            return self._final
        return word

    def has_risen(self) -> bool:
        """Whether the status is higher than when this was last asked (by `Client.poll`)."""
        now = self.progress()
        if (now.phase, now.sent) <= self.reported:
            return False
        self.reported = (now.phase, now.sent)
        return True

    def poll(self) -> Phase:
        """The phase now; from one load.

        Raises RuntimeError once the client is closed, unless the request has ended before.
        """
        return Phase(self.progress().phase)

    @property
    def sent_tokens(self) -> int:
        """Rows that have landed: at this destination (receiver), at all of them (sender)."""
        return self.progress().sent

    @property
    def stamps_ns(self) -> tuple[int, ...]:
        """Monotonic ns of the first entry into each phase; 0 where it was not entered."""
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
        """Why it failed; None while it has not."""
        phase = self.poll()  # first: it may find that the node is gone, and settle the outcome
        if self._final is None and phase == Phase.Failed:
            found = self._read_failure()
            if self._final is None:  # else the slot may have been another's while we looked
                return found
        return self._final_failure

    def abort(self, reason: str = "aborted by the caller") -> None:
        """Give the request up, in any phase; both sides end as Failed with this reason.

        Has no effect once it has ended.

        Raises:
            NodeGoneError: the node is gone.
            RuntimeError: after `Client.close`, or in a forked child.
        """
        self._attachment.check_usable()
        if self.progress().phase >= Phase.Success:
            return
        self.fail(FailureCode.ABORTED, str(reason))

    def fail(self, code: FailureCode, reason: str) -> None:
        """End the request as Failed for a reason of this side's own (either thread). The first reason stands."""
        if self.slot == NO_SLOT:
            self.give_up(code, reason)
            if self.slot == NO_SLOT:  # else it has been opened meanwhile
                if self._final is None:
                    self._library.hurry(self)
                return
        self._slots.claim_failure(self.slot, code, reason, insist=False)  # if we die now, the node goes on
        self._attachment.kick_bootstrap(Kick.FAIL, self.slot, self.epoch)

    def _read_failure(self) -> TransferError:
        code = self._slots.get(self.slot, Slot.FAILURE) or FailureCode.INTERNAL
        return failure(code, self._slots.reason(self.slot) or FailureCode(code).name.lower(), self.room)

    def _settle(self) -> None:
        """Keep the outcome here: the slot may be used again from now on (library thread only)."""
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

    def keep_outcome(self) -> None:
        """Settle the outcome of a request that has ended before the library thread came to it (`Client.close`)."""
        if self._final is None and self.slot != NO_SLOT and self.progress().phase >= Phase.Success:
            self._settle()

    def refuse(self, why: str) -> None:
        """The client has left its node: what has ended can still be asked how, all else is a RuntimeError."""
        refuse(self, why, LED_TO_MEMORY)

    # ---- without a slot, and how it gets one

    def give_up(self, code: FailureCode, reason: str) -> None:
        """Have it fail as soon as it has a slot, or without one; the first reason stands (either thread)."""
        if self._given_up is None:
            self._given_up = (code, reason)

    def end_without_slot(self) -> None:
        """End it as Failed: it was given up, and there was no slot for it (library thread, or `Client.close`)."""
        assert self._given_up is not None
        self._settle_without_slot(*self._given_up)

    def prepare(self, slot: int) -> None:
        """Write what its side keeps in the slot's record, before its epoch is opened (either thread)."""
        raise NotImplementedError

    def entered(self, slot: int, epoch: int) -> None:
        """Note the slot that it has (either thread)."""
        self.epoch = epoch
        self.slot = slot  # last: whoever sees it finds its epoch

    def catch_up(self) -> None:
        """Do in its slot what the caller did before it saw the slot; the caller looks for the slot after it has noted
        what it did.
        """
        if self._given_up is not None:
            self.fail(*self._given_up)

    # ---- called by the library thread

    def service(self) -> None:
        """Do what the words ask for; cheap and idempotent."""
        raise NotImplementedError

    def let_go(self) -> None:
        """It is over, however it ended: what it keeps of the caller's is the caller's again."""

    @property
    def wants_block(self) -> bool:
        """Whether it waits for a block to come free."""
        return False

    def evict(self, *, copying: bool = False) -> int:
        """Drop source blocks that no destination can take now. Returns how many were dropped; a receiver has none.

        `copying`: also one whose rows must be copied to host memory first.
        """
        return 0


_WAITING: Final = Progress(0, Phase.Bootstrapping, 0)
