"""Kicks that go out at once, and those that wait for the next flush: each is rung for, and once."""

from __future__ import annotations

from collections.abc import Callable

from embridge.allocator.rings import Kick, KickSender


def nothing() -> None:
    pass


class Ring:
    """A ring that takes what it is given, and may have another thread's call come first."""

    def __init__(self) -> None:
        self.pushed: list[tuple[int, ...]] = []
        self.between: Callable[[], None] = nothing

    def push(self, *record: int) -> bool:
        self.pushed.append(record)
        between, self.between = self.between, nothing
        between()
        return True


class Bell:
    """Counts, and says how many records there were."""

    def __init__(self, ring: Ring) -> None:
        self.ring_, self.rings = ring, list[int]()
        self.between: Callable[[], None] = nothing

    def ring(self) -> bool:
        self.rings.append(len(self.ring_.pushed))
        between, self.between = self.between, nothing
        between()
        return False


def made() -> tuple[KickSender, Ring, Bell]:
    ring = Ring()
    bell = Bell(ring)
    return KickSender(ring, bell), ring, bell  # type: ignore[arg-type]


def test_what_was_sent_at_once_is_not_rung_for_by_the_next_flush() -> None:
    sender, _, bell = made()
    sender.send_now(Kick.LOOK, 1, 1)
    sender.flush()
    assert bell.rings == [1]
    sender.send(Kick.LOOK, 2, 1)
    sender.flush()
    sender.flush()
    assert bell.rings == [1, 2]


def test_what_another_thread_queues_meanwhile_is_rung_for() -> None:
    """P8: wherever it comes in between, its flush rings, or a ring comes behind its push."""
    for where in ("push", "ring"):
        sender, ring, bell = made()

        def other(sender: KickSender = sender) -> None:
            sender.send(Kick.LOOK, 2, 1)

        if where == "push":
            ring.between = other
        else:
            bell.between = other
        sender.send_now(Kick.LOOK, 1, 1)
        sender.flush()
        assert bell.rings
        assert max(bell.rings) == len(ring.pushed) == 2


def test_what_is_sent_at_once_while_another_thread_queues_hides_nothing() -> None:
    """P8."""
    sender, ring, bell = made()
    ring.between = lambda: sender.send_now(Kick.LOOK, 2, 1)
    sender.send(Kick.LOOK, 1, 1)
    sender.flush()
    assert max(bell.rings) == len(ring.pushed) == 2
