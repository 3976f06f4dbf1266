"""How an encoder and a scheduler of one host find each other by their room, and which path a request takes: every
interleaving of their first steps.

A language node has a table of *posts*, each one word, entered and taken off by CAS. A scheduler posts its grant (the
room, the slot and its epoch), then looks for an offer of that room, and rings its encoder. An encoder posts its offer
(the room, and where its bell is), then looks for a grant. Either may come first. A grant that was found is only a hint:
slot and claim say whether it holds. Where nobody has taken the claim after a while, the language node sends its `init`
all the same. That grants no block: it makes the request known to the encode node, which answers that the room has
failed there, or that its encoder needs the network. Only then the language node takes the claim for the network, and
lets the encode node's transfer worker write until it has heard that no attempt of it is open.

Modelled: the table, full or not; both ways to come first; rooms with the same tag; a room that is asked for again at
another encode node; an encoder that needs the network, then or from the beginning; deadlines of both sides, and deaths
of both at any step; posts that the dead have left. Messages are never forgotten.

Not modelled: the single steps of a copy and of a death (`direct_claim_model`, `direct_writers_model`); the two words at
the end (`direct_outcome_model`), which are raised in one step here; the network's own failures (`transfer_model`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from explorer import Finding, Ruled, explore, put
from phases import FAILED, OPEN, SUCCESS

NOBODY: Final = -1
SHUT, FREE, WRITING, REVOKED = "SHUT", "OPEN", "WRITING", "REVOKED"


class Post(NamedTuple):
    """An entry of the table: a grant, or an offer; `room` is what of the room has space in it."""

    kind: str
    room: int
    slot: int = NOBODY
    epoch: int = 0
    encoder: int = NOBODY


class Slot(NamedTuple):
    """A slot of the language node: the request that it is for, and its claim."""

    request: int = NOBODY
    epoch: int = 0
    claim: str = SHUT
    writer: str = ""  # of the claim: an encoder, or the network


class Request(NamedTuple):
    """The language side. `at` is new, post, look, wait, end, quarantine or over."""

    at: str = "new"
    slot: int = NOBODY
    epoch: int = 0
    phase: int = OPEN
    network_wanted: bool = False


class Encoder(NamedTuple):
    """The encode side. `at` is new, post, look, wait, found, compare, record, claim, copy, raise, give back, network,
    end, killed or over. `found` are the grants that it has found and not refused yet, each a slot and its epoch.
    """

    at: str = "new"
    phase: int = OPEN
    alive: bool = True
    direct: bool = True
    bell: bool = False
    found: tuple[tuple[int, int], ...] = ()
    recorded: tuple[int, int] | None = None  # the destination, as its node knows it
    worker: str = "idle"  # its node's transfer worker, for this request


class World(NamedTuple):
    table: tuple[Post | None, ...]
    slots: tuple[Slot, ...]
    requests: tuple[Request, ...]
    encoders: tuple[Encoder, ...]
    messages: frozenset[tuple[Any, ...]] = frozenset()  # kind, which request, slot, epoch
    encoder_kills: int = 0
    scheduler_kills: int = 0
    changes: int = 0
    fault: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How large the world is, and how often each bad thing may happen in it."""

    rooms: tuple[int, ...] = (0,)  # of each request; a room that comes again is asked for at another encode node
    slots: int = 1
    entries: int = 2
    same_tag: bool = False
    init: bool = True  # comes in time; else the two must find each other without it
    deadlines: bool = False  # else only death ends a request before its time
    encoder_kills: int = 0
    scheduler_kills: int = 0
    changes: int = 0  # encoders that find that they need the network


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The protocol; each is True, or is the rule that is broken."""

    r28_the_network_takes_the_claim: bool = True
    r28_the_networks_claim_lasts_until_its_end: bool = True
    r37_posts_then_looks: bool = True
    r37_the_room_is_compared_in_the_slot: bool = True
    r37_the_encode_node_is_compared_in_the_slot: bool = True
    r37_the_epoch_is_looked_at_again: bool = True  # after both, and before the slot is taken for ours
    r37_posts_of_the_dead_are_taken_off: bool = True
    r37_the_init_follows: bool = True


Step = tuple[str, World]


class Model(Ruled[Setting, Rules]):
    """The steps of one setting under some rules. Request i is meant for encoder i; a fault names who has it instead."""

    def initial(self) -> World:
        s = self.setting
        return World(
            table=(None,) * s.entries,
            slots=(Slot(),) * s.slots,
            requests=(Request(),) * len(s.rooms),
            encoders=(Encoder(),) * len(s.rooms),
            encoder_kills=s.encoder_kills,
            scheduler_kills=s.scheduler_kills,
            changes=s.changes,
        )

    def steps(self, world: World) -> Iterator[Step]:
        for i, request in enumerate(world.requests):
            yield from self.scheduler_steps(world, i, request)
        for i, encoder in enumerate(world.encoders):
            if encoder.alive:
                yield from self.encoder_steps(world, i, encoder)
            yield from self.encode_node_steps(world, i, encoder)
        for message in sorted(world.messages):
            yield from self.taken(world, *message)

    def goal(self, world: World) -> bool:
        """All have ended, well where nothing bad may happen; nothing is left in the table or held by a claim."""
        s = self.setting
        bad = s.deadlines or s.encoder_kills or s.scheduler_kills
        over = all(r.at == "over" for r in world.requests) and all(e.at == "over" for e in world.encoders)
        well = all(r.phase == SUCCESS for r in world.requests)
        return over and (bool(bad) or well) and not any(world.table) and all(slot.claim == SHUT for slot in world.slots)

    # ---- what several do

    def tag(self, i: int) -> int:
        return 0 if self.setting.same_tag else self.setting.rooms[i]

    def posted(self, world: World, post: Post) -> World | None:
        """By CAS of the first free entry; None where the table is full."""
        free = [entry for entry, there in enumerate(world.table) if there is None]
        return world._replace(table=put(world.table, free[0], post)) if free else None

    def taken_off(self, world: World, kind: str, i: int) -> World:
        """By CAS of that very post."""
        request = world.requests[i]
        key = (request.slot, request.epoch, NOBODY) if kind == "grant" else (NOBODY, 0, i)
        post = Post(kind, self.tag(i), *key)
        return world._replace(table=tuple(None if there == post else there for there in world.table))

    def with_request(self, world: World, i: int, **words: Any) -> World:
        return world._replace(requests=put(world.requests, i, world.requests[i]._replace(**words)))

    def with_encoder(self, world: World, i: int, **words: Any) -> World:
        return world._replace(encoders=put(world.encoders, i, world.encoders[i]._replace(**words)))

    def with_claim(self, world: World, slot: int, claim: str, writer: str = "") -> World:
        return world._replace(slots=put(world.slots, slot, world.slots[slot]._replace(claim=claim, writer=writer)))

    def given_back(self, world: World, key: tuple[int, int] | None, writer: str) -> World:
        if key is None:
            return world
        slot = world.slots[key[0]]
        if slot.epoch != key[1] or slot.writer != writer or slot.claim not in (WRITING, REVOKED):
            return world
        return self.with_claim(world, key[0], FREE if slot.claim == WRITING else SHUT)

    def says(self, world: World, kind: str, i: int, key: tuple[int, int]) -> World:
        return world._replace(messages=world.messages | {(kind, i, *key)})

    def copied(self, world: World, i: int, key: tuple[int, int], writer: str) -> World:
        """Rows land in the blocks of that slot and epoch."""
        slot = world.slots[key[0]]
        if slot.epoch != key[1] or slot.writer != writer:
            return world._replace(fault=f"stray: {writer} writes for request {i} without the claim")
        return world

    def succeed(self, world: World, i: int, key: tuple[int, int]) -> World:
        """Both words, in one step (see `direct_outcome_model`), where neither has ended."""
        request = world.requests[i]
        if (request.slot, request.epoch) != key or request.phase != OPEN or world.encoders[i].phase != OPEN:
            return world
        return self.with_encoder(self.with_request(world, i, phase=SUCCESS), i, phase=SUCCESS)

    # ---- the scheduler, and its node

    def scheduler_steps(self, world: World, i: int, me: Request) -> Iterator[Step]:
        name, key = f"request {i}", (me.slot, me.epoch)
        if me.at == "new":
            earlier = [world.requests[j] for j in range(i) if self.setting.rooms[j] == self.setting.rooms[i]]
            free = [slot for slot, x in enumerate(world.slots) if x.request == NOBODY]
            if free and all(other.at == "over" for other in earlier):
                slot = free[0]
                epoch = world.slots[slot].epoch + 1
                opened = world._replace(slots=put(world.slots, slot, Slot(i, epoch, FREE)))
                first = "post" if self.rules.r37_posts_then_looks else "look"
                yield (
                    f"{name}: opens slot {slot}, epoch {epoch}",
                    self.with_request(opened, i, at=first, slot=slot, epoch=epoch),
                )
            return
        if me.at in ("post", "look", "wait"):
            yield from self.meeting_steps(world, i, me)
        if me.at in ("post", "look", "wait") and me.phase == OPEN:
            if self.setting.deadlines:
                yield f"{name}: its deadline, Failed", self.with_request(world, i, phase=FAILED)
            if world.scheduler_kills:
                failed = self.with_request(world, i, phase=FAILED, at="end")
                failed = failed._replace(scheduler_kills=world.scheduler_kills - 1)
                yield f"{name}: its scheduler is killed, Failed", self.says(failed, "abort", i, key)
        if me.at == "wait" and me.phase != OPEN:
            ending = self.with_request(self.taken_off(world, "grant", i), i, at="end")
            ending = self.says(ending, "abort" if me.phase == FAILED else "close", i, key)
            yield f"{name}: has ended, takes its grant off the table", ending
        elif me.at in ("post", "look") and me.phase != OPEN:
            yield f"{name}: has ended", self.with_request(world, i, at="wait")
        elif me.at == "end":
            yield from self.end_steps(world, i, me)
        elif me.at == "quarantine" and world.slots[me.slot].claim == SHUT:
            yield f"{name}: the claim was given back", self.freed(world, i)

    def meeting_steps(self, world: World, i: int, me: Request) -> Iterator[Step]:
        name, key = f"request {i}", (me.slot, me.epoch)
        then_looks = self.rules.r37_posts_then_looks
        if me.at == "post":
            posted = self.posted(world, Post("grant", self.tag(i), me.slot, me.epoch))
            label = "posts its grant" if posted else "finds the table full"
            after = posted or world
            yield f"{name}: {label}", self.with_request(after, i, at="look" if then_looks else "wait")
        elif me.at == "look":
            after = world
            for post in world.table:
                if post is not None and (post.kind, post.room) == ("offer", self.tag(i)):
                    after = self.with_encoder(after, post.encoder, bell=True)
            yield f"{name}: looks for an offer", self.with_request(after, i, at="wait" if then_looks else "post")
        elif me.phase == OPEN:
            is_free = world.slots[me.slot].claim == FREE
            may_ask = self.setting.init and self.rules.r37_the_init_follows and is_free
            if may_ask and ("init", i, *key) not in world.messages:
                yield f"{name}: sends its init", self.says(world, "init", i, key)
            if me.network_wanted and ("go", i, *key) not in world.messages:
                if not self.rules.r28_the_network_takes_the_claim:
                    yield f"{name}: lets the network write", self.says(world, "go", i, key)
                elif is_free or world.slots[me.slot].writer == "network":
                    taken = self.with_claim(world, me.slot, WRITING, "network")
                    yield f"{name}: takes the claim for the network, lets it write", self.says(taken, "go", i, key)

    def end_steps(self, world: World, i: int, me: Request) -> Iterator[Step]:
        slot = world.slots[me.slot]
        if slot.claim == WRITING:
            revoked = self.with_claim(world, me.slot, REVOKED, slot.writer)
            key = (me.slot, me.epoch)
            if slot.writer == "network" and not self.rules.r28_the_networks_claim_lasts_until_its_end:
                revoked = self.given_back(revoked, key, "network")
            elif slot.writer == "network" and ("go", i, *key) not in world.messages:
                revoked = self.given_back(revoked, key, "network")  # it has never been let to write
            yield f"request {i}: claim WRITING -> REVOKED", self.with_request(revoked, i, at="quarantine")
        else:
            shut = self.with_claim(world, me.slot, SHUT)
            yield f"request {i}: claim {slot.claim} -> SHUT", self.freed(shut, i)

    def freed(self, world: World, i: int) -> World:
        """Its slot is another request's; what its scheduler has left in the table goes now."""
        me = world.requests[i]
        if self.rules.r37_posts_of_the_dead_are_taken_off:
            world = self.taken_off(world, "grant", i)
        slots = put(world.slots, me.slot, world.slots[me.slot]._replace(request=NOBODY))
        return self.with_request(world._replace(slots=slots), i, at="over")

    # ---- the encoder

    def encoder_steps(self, world: World, i: int, me: Encoder) -> Iterator[Step]:
        name = f"encoder {i}"
        if world.encoder_kills and me.at != "over":
            killed = self.with_encoder(world, i, alive=False, at="killed", found=())
            yield f"{name}: is killed", killed._replace(encoder_kills=world.encoder_kills - 1)
        if me.phase != OPEN and me.at in ("new", "look", "wait", "found", "compare", "record", "claim", "network"):
            yield f"{name}: has ended", self.with_encoder(world, i, at="end")
            return
        if world.changes and me.direct and me.at in ("new", "look", "wait", "claim"):
            changed = world._replace(changes=world.changes - 1)
            yield f"{name}: needs the network", self.with_encoder(changed, i, direct=False, at="network")
        if me.at == "new":
            first = "post" if self.rules.r37_posts_then_looks else "look"
            yield f"{name}: begins", self.with_encoder(world, i, at=first)
        elif me.at == "post":
            posted = self.posted(world, Post("offer", self.tag(i), encoder=i))
            label = "posts its offer" if posted else "finds the table full"
            at = "look" if self.rules.r37_posts_then_looks else "wait"
            yield f"{name}: {label}", self.with_encoder(posted or world, i, at=at)
        elif me.at == "look" or (me.at == "wait" and (me.bell or me.recorded)):
            keys = [(p.slot, p.epoch) for p in world.table if p is not None and p[:2] == ("grant", self.tag(i))]
            found = (me.recorded,) if me.recorded else tuple(keys)
            none = "post" if me.at == "look" and not self.rules.r37_posts_then_looks else "wait"
            after = self.with_encoder(world, i, at="found" if found else none, found=found, bell=False)
            yield f"{name}: looks for a grant, finds {found}", after
        elif me.at == "end":
            off = self.taken_off(world, "offer", i)
            yield f"{name}: takes its offer off the table", self.with_encoder(off, i, at="over", found=(), bell=False)
        elif me.found:
            yield from self.write_steps(world, i, me, me.found[0])

    def write_steps(self, world: World, i: int, me: Encoder, key: tuple[int, int]) -> Iterator[Step]:
        name, slot = f"encoder {i}", world.slots[key[0]]
        writer = name
        following = {"found": "compare", "compare": "record", "record": "claim"}
        if me.at in following:
            holds = {
                "found": slot.epoch == key[1] and slot.request != NOBODY,
                "compare": slot.request != NOBODY and self.is_for(slot.request, i),
                "record": slot.epoch == key[1] or not self.rules.r37_the_epoch_is_looked_at_again,
            }
            at = following[me.at]
            if holds[me.at] and me.recorded in (None, key):
                recorded = key if me.at == "record" else me.recorded
                yield (
                    f"{name}: {key} holds, as far as it is looked at",
                    self.with_encoder(world, i, at=at, recorded=recorded),
                )
            else:
                rest = me.found[1:]
                at = "found" if rest else "wait"
                yield f"{name}: refuses {key}", self.with_encoder(world, i, at=at, found=rest)
        elif me.at == "claim":
            if (slot.epoch, slot.claim) == (key[1], FREE):
                fault = None
                if slot.request != i:
                    fault = f"mixed: encoder {i} has the claim of request {slot.request}"
                claimed = self.with_claim(world, key[0], WRITING, writer)
                yield f"{name}: claims", self.with_encoder(claimed, i, at="copy")._replace(fault=fault)
            elif (slot.epoch, slot.writer) == (key[1], "network"):
                yield f"{name}: the network has the claim", self.with_encoder(world, i, at="network", direct=False)
            else:
                yield f"{name}: the request is over there", self.with_encoder(world, i, at="end", phase=FAILED)
        elif me.at == "copy":
            yield f"{name}: copies", self.with_encoder(self.copied(world, i, key, writer), i, at="raise")
        elif me.at == "raise":
            raised = self.succeed(world, i, key)
            phase = FAILED if raised.encoders[i].phase == OPEN else raised.encoders[i].phase
            yield f"{name}: raises the words", self.with_encoder(raised, i, at="give back", phase=phase)
        elif me.at == "give back":
            back = self.given_back(world, key, writer)
            yield f"{name}: gives the claim back", self.with_encoder(back, i, at="end")

    def is_for(self, request: int, i: int) -> bool:
        """Whether a slot's record says that it waits for this encoder."""
        is_room = (
            self.setting.rooms[request] == self.setting.rooms[i] or not self.rules.r37_the_room_is_compared_in_the_slot
        )
        # the encode node of a room that comes again is another one
        is_other_node = self.setting.rooms[request] == self.setting.rooms[i] and request != i
        return is_room and not (is_other_node and self.rules.r37_the_encode_node_is_compared_in_the_slot)

    # ---- the encode node

    def encode_node_steps(self, world: World, i: int, me: Encoder) -> Iterator[Step]:
        name, key = f"encode node {i}", me.recorded
        if not me.alive and me.at == "killed":
            slots = [slot for slot in range(len(world.slots)) if world.slots[slot].writer == f"encoder {i}"]
            buried = self.with_encoder(world, i, at="over")
            for slot in slots:
                buried = self.given_back(buried, (slot, world.slots[slot].epoch), f"encoder {i}")
            if self.rules.r37_posts_of_the_dead_are_taken_off:
                buried = self.taken_off(buried, "offer", i)
            yield f"the door gives back what encoder {i} held, and takes its offer off", buried
        if me.phase == OPEN and (self.setting.deadlines or not me.alive):
            yield f"{name}: deadline or death, Failed", self.with_encoder(world, i, phase=FAILED)
        if key is None:
            return
        report = ("report" if me.phase == SUCCESS else "refusal", i, *key)
        if me.phase != OPEN and report not in world.messages:
            yield f"{name}: tells how it ended", self.says(world, report[0], i, key)
        if me.phase == OPEN and me.at == "network" and ("ask", i, *key) not in world.messages:
            yield f"{name}: asks for the network", self.says(world, "ask", i, key)
        if me.worker == "writing":
            yield (
                f"{name}: its worker copies",
                self.with_encoder(self.copied(world, i, key, "network"), i, worker="done"),
            )
        elif me.worker == "done":
            yield f"{name}: its worker is done", self.with_encoder(self.succeed(world, i, key), i, worker="idle")

    # ---- messages

    def taken(self, world: World, kind: str, i: int, slot: int, epoch: int) -> Iterator[Step]:
        encoder, request, key = world.encoders[i], world.requests[i], (slot, epoch)
        is_open = (request.slot, request.epoch, request.phase) == (*key, OPEN)
        if kind == "init":
            if encoder.phase == FAILED and ("refusal", i, *key) not in world.messages:
                yield f"encode node {i}: refuses the init", self.says(world, "refusal", i, key)
            elif encoder.recorded is None and encoder.phase == OPEN:
                yield f"encode node {i}: takes the init", self.with_encoder(world, i, recorded=key)
        elif kind == "ask" and is_open and not request.network_wanted:
            yield f"request {i}: hears that the network is needed", self.with_request(world, i, network_wanted=True)
        elif kind == "go" and encoder.phase == OPEN and encoder.at == "network" and encoder.worker == "idle":
            yield f"encode node {i}: its worker begins", self.with_encoder(world, i, worker="writing")
        elif kind in ("report", "refusal") and is_open:
            phase = SUCCESS if kind == "report" else FAILED
            yield f"request {i}: hears how it ended", self.with_request(world, i, phase=phase)
        elif kind in ("abort", "close"):
            if encoder.phase == OPEN:
                yield f"encode node {i}: takes the abort", self.with_encoder(world, i, phase=FAILED)
            elif encoder.worker == "idle" and ("ack", i, *key) not in world.messages:
                yield f"encode node {i}: no attempt is open", self.says(world, "ack", i, key)
        elif kind == "ack" and world.slots[slot].epoch == epoch and world.slots[slot].claim == REVOKED:
            yield f"request {i}: hears that no attempt is open", self.given_back(world, key, "network")


def explore_rendezvous(setting: Setting, rules: Rules | None = None, *, max_states: int = 300_000) -> Finding:
    """A fault is `stray` (somebody writes without the claim), `mixed` (another's encoder has it), or `stuck`."""
    model = Model(setting, rules or Rules())
    return explore(
        model.initial(), model.steps, violated=lambda world: world.fault, goal=model.goal, max_states=max_states
    )
