"""Claims: every move from every state, who may make it, and what becomes of two who make one at the same moment.

And the table of writers, by whose entries claims name their holders.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import pytest
from core_support import SharedMemory
from support.claims import shut

from embridge.allocator._core import MAX_EPOCH
from embridge.allocator.claims import HELD, MAX_GENERATION, NOBODY, Claim, ClaimState, ClaimTable, WriterId
from embridge.allocator.control import Control, format_control
from embridge.allocator.geometry import MAX_TOKENS, Geometry, Limits, Role
from embridge.allocator.lanes_and_processes import ForeignWriter
from embridge.allocator.layout import CONTROL_TABLES, PAGE_BYTES, ControlLayout
from embridge.allocator.records import CLAIM_WORDS, MAX_WRITERS, WRITER_WORDS, Writer
from embridge.allocator.segment import map_segment
from embridge.pipeline.client.doors import WritersPart

SLOTS: Final = 64
GEOMETRY: Final = Geometry(hidden_size=8, num_blocks=4)
LIMITS: Final = Limits(num_slots=SLOTS, max_clients=3, num_workers=1, ring_records=16, max_peers=2, max_peer_slots=64)
MAX_CLIENTS: Final = 64
EPOCH: Final = 5
ME, OTHER = WriterId(1, 7), WriterId(2, 7)
MINE_BEFORE: Final = WriterId(1, 6)  # who had my entry before me
S: Final = ClaimState


class Watched:
    """Words; after the first load of one of them, or after every store, somebody else does something."""

    def __init__(
        self,
        words: Any,
        *,
        at: int = 0,
        after_load: Callable[[], object] | None = None,
        after_store: Callable[[], object] = lambda: None,
    ) -> None:
        self._words, self._at = words, at
        self._after_load, self._after_store = after_load, after_store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._words, name)

    def load(self, index: int) -> int:
        value: int = self._words.load(index)
        if index == self._at and self._after_load is not None:
            then, self._after_load = self._after_load, None
            then()
        return value

    def store(self, *arguments: int) -> None:
        self._words.store(*arguments)
        self._after_store()


@pytest.fixture
def claims() -> ClaimTable:
    return ClaimTable(SharedMemory(4096).map(), 64, SLOTS)


def put(claims: ClaimTable, slot: int, claim: Claim) -> None:
    claims._words.store(slot * CLAIM_WORDS, claim.pack())


# ---- the word


@pytest.mark.parametrize("epoch", [0, 1, MAX_EPOCH])
@pytest.mark.parametrize("state", S)
@pytest.mark.parametrize("writer", [NOBODY, ME, WriterId(255, MAX_GENERATION), WriterId(0, 1), WriterId(255, 0)])
def test_a_claim_is_read_as_it_was_written_whatever_is_in_it(epoch: int, state: ClaimState, writer: WriterId) -> None:
    """R28: epoch, state, entry and generation have their bits to themselves, up to the last of each."""
    claim = Claim(epoch, state, writer)
    assert Claim.of(claim.pack()) == claim
    assert claim.pack() < 1 << 64


def test_no_two_claims_have_one_word_and_the_widths_are_those_of_what_they_name() -> None:
    """R28, R33: the last epoch of a slot, the last entry of the table, the last generation of an entry."""
    epochs, entries, generations = (0, 1, MAX_EPOCH), (0, 1, MAX_WRITERS - 1), (0, 1, MAX_GENERATION)
    words = {
        Claim(epoch, state, WriterId(entry, generation)).pack()
        for epoch in epochs
        for state in S
        for entry in entries
        for generation in generations
    }
    assert len(words) == len(epochs) * len(S) * len(entries) * len(generations)
    assert (MAX_EPOCH, MAX_WRITERS, MAX_GENERATION) == ((1 << 28) - 1, 1 << 8, (1 << 24) - 1)


def test_a_slot_s_claim_is_its_own(claims: ClaimTable) -> None:
    for slot in range(SLOTS):
        shut(claims, slot, slot + 1, slot % 3, slot * MAX_TOKENS // SLOTS)
    for slot in range(SLOTS):
        assert claims.get(slot) == Claim(slot + 1, S.SHUT)
        assert (claims.lane(slot), claims.length(slot)) == (slot % 3, slot * MAX_TOKENS // SLOTS)
    shut(claims, 0, 2, MAX_CLIENTS - 1, MAX_TOKENS)
    assert (claims.lane(0), claims.length(0)) == (MAX_CLIENTS - 1, MAX_TOKENS)
    with pytest.raises(IndexError):
        claims.get(SLOTS)


# ---- every move from every state

CLAIMS: Final = {
    "shut": Claim(EPOCH, S.SHUT),
    "open": Claim(EPOCH, S.OPEN),
    "writing": Claim(EPOCH, S.WRITING, ME),
    "another's": Claim(EPOCH, S.WRITING, OTHER),
    "my predecessor's": Claim(EPOCH, S.WRITING, MINE_BEFORE),
    "revoked": Claim(EPOCH, S.REVOKED, ME),
    "revoked another's": Claim(EPOCH, S.REVOKED, OTHER),
    "ended": Claim(EPOCH, S.ENDED),
    **{f"{state.name} of an older epoch": Claim(EPOCH - 1, state, ME if state in HELD else NOBODY) for state in S},
    **{f"{state.name} of a later epoch": Claim(EPOCH + 1, state, ME if state in HELD else NOBODY) for state in S},
}
MOVES: Final[dict[str, Callable[[ClaimTable], object]]] = {
    "offer": lambda claims: claims.offer(3, EPOCH),
    "take": lambda claims: claims.take(3, EPOCH, ME),
    "give back": lambda claims: claims.give_back(3, EPOCH, ME),
    "revoke": lambda claims: claims.revoke(3, EPOCH),
    "end": lambda claims: claims.end(3, EPOCH),
    "end writer": lambda claims: claims.end_writer(ME),
}
# what each move makes of each claim, and what it says; what is not here stays as it is
MADE: Final[dict[tuple[str, str], tuple[Claim, object]]] = {
    ("offer", "shut"): (CLAIMS["open"], True),
    ("take", "open"): (CLAIMS["writing"], True),
    ("give back", "writing"): (CLAIMS["open"], True),
    ("give back", "revoked"): (CLAIMS["ended"], False),
    ("revoke", "shut"): (CLAIMS["ended"], True),
    ("revoke", "open"): (CLAIMS["ended"], True),
    ("revoke", "writing"): (CLAIMS["revoked"], False),
    ("revoke", "another's"): (CLAIMS["revoked another's"], False),
    ("revoke", "my predecessor's"): (Claim(EPOCH, S.REVOKED, MINE_BEFORE), False),
    ("end", "open"): (CLAIMS["ended"], None),
    ("end writer", "writing"): (CLAIMS["ended"], 1),
    ("end writer", "revoked"): (CLAIMS["ended"], 1),
    **{
        ("end writer", f"{state.name} of {which} epoch"): (Claim(epoch, S.ENDED), 1)
        for which, epoch in (("an older", EPOCH - 1), ("a later", EPOCH + 1))
        for state in HELD
    },
}
SAID: Final = {  # where nothing moves
    "offer": False, "take": False, "give back": False, "revoke": True, "end": None, "end writer": 0,
}


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("before", CLAIMS)
def test_every_move_from_every_claim(claims: ClaimTable, move: str, before: str) -> None:
    """R28, R30, R31, R33, R81: nobody but its writer gives a claim back, nobody's death ends another's, an ended claim
    is ended for good, and a claim of another epoch is nobody's business but the dead writer's.
    """
    shut(claims, 3, EPOCH, 2)
    put(claims, 3, CLAIMS[before])
    after, said = MADE.get((move, before), (CLAIMS[before], SAID[move]))
    if move == "revoke" and before.startswith("revoked"):
        said = False  # its writer still holds it
    assert MOVES[move](claims) == said
    assert claims.get(3) == after
    assert claims.lane(3) == 2
    assert {claims.get(slot) for slot in range(SLOTS) if slot != 3} == {Claim(0, S.SHUT)}


@pytest.mark.parametrize("before", CLAIMS)
def test_a_claim_begins_shut_whatever_was_there(claims: ClaimTable, before: str) -> None:
    """R28: its slot's client alone knows that epoch, so nobody can be held up by it."""
    put(claims, 3, CLAIMS[before])
    shut(claims, 3, EPOCH + 2, 1)
    assert claims.get(3) == Claim(EPOCH + 2, S.SHUT)
    assert not claims.give_back(3, EPOCH, ME)
    assert claims.get(3) == Claim(EPOCH + 2, S.SHUT)


def test_the_lane_is_there_before_the_claim_can_be_taken(claims: ClaimTable) -> None:
    """P8: a writer rings the bell of that lane."""
    seen: list[tuple[Claim, int]] = []
    claims._words = Watched(  # type: ignore[assignment]
        claims._words, after_store=lambda: seen.append((claims.get(3), claims.lane(3)))
    )
    shut(claims, 3, EPOCH, 2)
    assert all(lane == 2 for claim, lane in seen if claim.epoch == EPOCH)
    assert seen[-1] == (Claim(EPOCH, S.SHUT), 2)


# ---- two at the same moment


def crossed(claims: ClaimTable, by: Callable[[ClaimTable], object]) -> ClaimTable:
    """Another process's look at the same words; its first load of slot 3's is followed by what somebody else does."""
    other = ClaimTable.__new__(ClaimTable)
    other.num_slots = claims.num_slots
    other._words = Watched(claims._words, at=3 * CLAIM_WORDS, after_load=lambda: by(claims))  # type: ignore[assignment]
    return other


CROSSINGS: Final[dict[str, tuple[str, str, bool, str]]] = {
    # (before, what crosses, what revoke says, after)
    "given back meanwhile": ("writing", "give back", True, "ended"),
    "taken meanwhile": ("open", "take", False, "revoked"),
    "offered meanwhile": ("shut", "offer", True, "ended"),
    "revoked by another meanwhile": ("writing", "revoke", False, "revoked"),
    "its writer dead meanwhile": ("writing", "end writer", True, "ended"),
    "given back after it was revoked": ("revoked", "give back", False, "ended"),
}


@pytest.mark.parametrize("name", CROSSINGS)
def test_who_revokes_while_another_moves_sees_it(claims: ClaimTable, name: str) -> None:
    """R30, R31: it never says that a claim is ended while somebody may write, and a claim that was given back between
    its look and its move is ended all the same.
    """
    before, move, said, after = CROSSINGS[name]
    put(claims, 3, CLAIMS[before])
    assert crossed(claims, MOVES[move]).revoke(3, EPOCH) is said
    assert claims.get(3) == CLAIMS[after]
    assert not claims.take(3, EPOCH, OTHER)


def test_the_dead_hold_nothing_whoever_revokes_meanwhile(claims: ClaimTable) -> None:
    """R33: the launcher has seen WRITING when the poller makes REVOKED of it."""
    put(claims, 3, CLAIMS["writing"])
    assert crossed(claims, MOVES["revoke"]).end_writer(ME) == 1
    assert claims.get(3) == CLAIMS["ended"]


def test_all_claims_of_the_dead_end_and_nobody_else_s(claims: ClaimTable) -> None:
    """R33: neither another's, nor those of who had the entry before."""
    held = {0: ME, 1: OTHER, 2: MINE_BEFORE, 5: ME, 63: ME}
    for slot in range(SLOTS):
        shut(claims, slot, EPOCH, 0)
        claims.offer(slot, EPOCH)
        if slot in held:
            assert claims.take(slot, EPOCH, held[slot])
    assert not claims.revoke(5, EPOCH)
    assert claims.end_writer(ME) == 3
    for slot in range(SLOTS):
        expected = Claim(EPOCH, S.OPEN) if slot not in held else Claim(EPOCH, S.WRITING, held[slot])
        assert claims.get(slot) == (Claim(EPOCH, S.ENDED) if held.get(slot) == ME else expected)
    assert claims.end_writer(ME) == 0


def test_who_holds_a_claim_excludes_its_own_other_thread(claims: ClaimTable) -> None:
    """R28: there is one claim a slot, also for two threads of one client."""
    put(claims, 3, CLAIMS["open"])
    assert claims.take(3, EPOCH, ME)
    assert not claims.take(3, EPOCH, ME)
    assert claims.give_back(3, EPOCH, ME)
    assert claims.take(3, EPOCH, ME)


# ---- writers


@pytest.fixture
def node() -> Control:
    mapping = SharedMemory(ControlLayout.of(Role.LANGUAGE, GEOMETRY, LIMITS).size).map()
    format_control(mapping, Role.LANGUAGE, GEOMETRY, LIMITS, node_id=1, incarnation=1, now_ns=1)
    return Control(mapping)


def client_of(node_id: int, pid: int = 100) -> ForeignWriter:
    return ForeignWriter(node_id, 1, pid, has_claims=True)


def test_an_entry_counts_its_owners(node: Control) -> None:
    """R33: a claim of the owner before is not that of who has the entry now."""
    writers = node.writers
    first = writers.add(client_of(20, 100))
    assert first is not None
    assert first.generation == 1
    assert writers.add(client_of(20, 101)) == WriterId(first.entry + 1, 1)
    writers.remove(first.entry)
    assert writers.pid_of(first) is None
    assert writers.add(client_of(21, 102)) == WriterId(first.entry, 2)
    assert writers.pid_of(first) is None
    assert writers.pid_of(WriterId(first.entry, 2)) == 102
    assert writers.pids(20, 1, has_claims=True) == [101]


def test_an_entry_of_which_all_generations_are_spent_retires(node: Control) -> None:
    """R33: a generation that wrapped would make the claim of its first owner the next one's."""
    writers = node.writers
    first = writers.add(client_of(20))
    assert first is not None
    writers.remove(first.entry)
    writers._words.store(first.entry * WRITER_WORDS + Writer.GENERATION, MAX_GENERATION - 1)
    last = writers.add(client_of(20))
    assert last == WriterId(first.entry, MAX_GENERATION)
    assert Claim.of(Claim(EPOCH, S.WRITING, last).pack()).writer == last
    writers.remove(last.entry)
    assert writers.add(client_of(20)) == WriterId(first.entry + 1, 1)


def test_nobody_is_no_writer(node: Control) -> None:
    """R33: a claim that nobody holds names no entry's first owner."""
    for has_claims in (True, False):
        assert node.writers.add(ForeignWriter(20, 1, 100, has_claims)) != NOBODY
    assert node.writers.pid_of(NOBODY) is None


def test_a_client_with_claims_keeps_no_quarantine_and_a_worker_does(node: Control) -> None:
    """R12: what a client may write, its claims say; a worker of a dead node may write whatever was exposed to it."""
    writers = node.writers
    client, worker = writers.add(client_of(20, 100)), writers.add(ForeignWriter(20, 1, 101))
    assert client is not None
    assert worker is not None
    assert writers.has(20, 1)
    writers.remove(worker.entry)
    assert not writers.has(20, 1)
    assert (writers.pids(20, 1), writers.pids(20, 1, has_claims=True)) == ([], [100])
    assert not writers.has(20, 2)


def test_clients_leave_an_entry_to_every_worker_of_every_peer(node: Control) -> None:
    """P12, P21: a client that is refused has its rows written by a worker; a worker that is refused writes none."""
    writers, num_workers = node.writers, LIMITS.max_peers * LIMITS.num_workers
    while writers.add(client_of(20)) is not None:
        pass
    workers = [writers.add(ForeignWriter(21, 1, 200 + worker)) for worker in range(num_workers)]
    assert None not in workers
    assert writers.add(ForeignWriter(21, 1, 300)) is None
    assert len(writers.pids(20, 1, has_claims=True)) == MAX_WRITERS - num_workers


# ---- the writers' part


def test_the_part_of_a_segment_that_writers_map_holds_status_claims_and_bells_and_nothing_else() -> None:
    """P7: whole pages of its own, so that a wild store of an encoder hits no ring, no peer and no lane."""
    for role in Role:
        layout = ControlLayout.of(role, GEOMETRY, LIMITS)
        begin, size = layout.writers_part
        assert begin % PAGE_BYTES == size % PAGE_BYTES == 0
        offsets = {name: getattr(layout, name) for name in CONTROL_TABLES}
        inside = [name for name, at in offsets.items() if begin <= at < begin + size]
        assert inside == ["doorbells", "claims", "meetings", "posts", "windows", "words", "stamps", "dirty"]
        assert max(at for name, at in offsets.items() if at < begin) + PAGE_BYTES <= begin  # the header, a page
        assert offsets["processes"] == begin + size


def test_a_writer_s_look_at_its_part_is_the_node_s_own(node: Control) -> None:
    """R28: the same words, by offsets that count from another place."""
    layout = node.layout
    begin, size = layout.writers_part
    memory = SharedMemory(layout.size)
    mapping = memory.map()
    format_control(mapping, Role.LANGUAGE, GEOMETRY, LIMITS, node_id=1, incarnation=1, now_ns=1)
    control = Control(mapping)
    part = WritersPart(map_segment(memory.fd, size, offset=begin), layout)
    shut(control.claims, SLOTS - 1, 1, 2)
    assert control.claims.offer(SLOTS - 1, 1)
    assert part.claims.take(SLOTS - 1, 1, ME)
    assert control.claims.get(SLOTS - 1) == Claim(1, S.WRITING, ME)
    assert control.status.open(SLOTS - 1, 1) == 1
    assert part.status.advance(SLOTS - 1, 1, 3, 12, 5)
    assert control.status.load(SLOTS - 1) == part.status.load(SLOTS - 1) == 1 << 36 | 3 << 33 | 12
    assert control.status.stamps(SLOTS - 1)[3] == 5
