"""The encode node of the model of a fetch (`item_fetch_model`): it publishes, evicts, answers, and writes rows."""

from __future__ import annotations

from collections.abc import Iterator

from explorer import put
from item_fetch_world import (
    ANY,
    FILLING,
    NONE,
    OVER,
    READY,
    RETIRED,
    Attempt,
    Bootstrap,
    Generation,
    Head,
    Message,
    Row,
    Slot,
    Words,
    World,
)

Step = tuple[str, World]


class EncodeNode(Words):
    """The steps of its processes, and what it does with messages."""

    def encode_steps(self, world: World) -> Iterator[Step]:
        yield from self.shelf_steps(world)
        yield from self.bootstrap_steps(world, world.bootstrap)
        for number, slot in enumerate(world.slots):
            if slot is not None and slot.state != "taken":
                yield from self.slot_steps(world, number, slot)
        for attempt in sorted(world.attempts):
            yield from self.attempt_steps(world, attempt)
        if world.encode_kills:
            incarnation = world.encode + 1
            yield (
                "the encode node is killed, and launched again",
                world._replace(
                    head=Head(Generation(incarnation if self.rules.r58_a_generation_names_the_incarnation else 1)),
                    owner=None,
                    source=(None,) * self.setting.length,
                    slots=(None,) * self.setting.slots,
                    tombstones=frozenset(),
                    bootstrap=Bootstrap(),
                    frees=False,
                    attempts=frozenset(),
                    encode=incarnation,
                    messages=frozenset(m for m in world.messages if m.kind in ("status", "no")),
                    encode_kills=world.encode_kills - 1,
                ),
            )

    def shelf_steps(self, world: World) -> Iterator[Step]:
        generation, state = world.head
        if state == OVER and world.publications and not world.frees and world.owner is None:
            incarnation = world.encode if self.rules.r58_a_generation_names_the_incarnation else 1
            following = Generation(incarnation, generation.number + 1)
            half = (Row(following, NONE, world.encode),) * self.setting.length
            filling = world._replace(head=Head(following, FILLING), owner=following, source=half)
            yield "the key is published, half of it", filling._replace(publications=world.publications - 1)
        if state == FILLING:
            rows = tuple(Row(generation, k, world.encode) for k in range(self.setting.length))
            yield f"{generation} is ready", world._replace(head=Head(generation, READY), source=rows)
        if world.frees:
            yield f"the blocks of {generation} are free", world._replace(head=Head(generation), owner=None, frees=False)
            return
        if state == READY and world.evictions:
            retired = world._replace(head=Head(generation, RETIRED), evictions=world.evictions - 1)
            yield f"{generation} is retired", retired
        is_pinned = any(slot is not None and slot.item == generation for slot in world.slots)
        if state == RETIRED and not (is_pinned and self.rules.r52_the_item_word_is_a_pin):
            yield f"no slot pins {generation}", world._replace(frees=True)

    def bootstrap_steps(self, world: World, me: Bootstrap) -> Iterator[Step]:
        if me.at == "looked":
            free = next((i for i, slot in enumerate(world.slots) if slot is None), None)
            if free is None:
                yield "no slot is free", world._replace(bootstrap=Bootstrap("refuse", me.request))
            else:
                slot = Slot("taken", me.request, me.item, me.first, (NONE,) * me.first + (me.block,))
                again = Bootstrap("again", me.request, me.item, slot=free)
                yield f"slot {free} is taken, its item word stored", self.with_slot(world, free, slot)._replace(
                    bootstrap=again
                )
        elif me.at == "again":
            slot_ = world.slots[me.slot]
            assert slot_ is not None
            is_there = world.head == (me.item, READY) or not self.rules.r52_looks_again_behind_the_item_word
            if is_there:
                opened = self.with_slot(world, me.slot, slot_._replace(state="open"))._replace(bootstrap=Bootstrap())
                yield f"slot {me.slot} opens", self.sent(opened, Message("status", me.request, generation=me.item))
            else:
                given = self.with_slot(world, me.slot, None)
                yield f"{me.item} has gone", given._replace(bootstrap=Bootstrap("refuse", me.request))
        elif me.at == "refuse":
            after = self.buried(world, me.request) if self.rules.r50_a_refusal_raises_the_tombstone else world
            yield f"{me.request} is refused", self.sent(
                after._replace(bootstrap=Bootstrap()), Message("no", me.request)
            )
        if world.bootstrap_kills and me.at != "idle":
            slots = world.slots
            if self.rules.r55_a_new_bootstrap_gives_taken_slots_back:
                slots = tuple(None if slot and slot.state == "taken" else slot for slot in slots)
            killed = world._replace(bootstrap=Bootstrap(), slots=slots, bootstrap_kills=world.bootstrap_kills - 1)
            yield "the bootstrap is killed, and begins anew", killed

    def slot_steps(self, world: World, number: int, slot: Slot) -> Iterator[Step]:
        request, item, sent = slot.request, slot.item, slot.sent
        is_written, no = self.is_written(world, request), Message("no", request)
        if slot.state == "open":
            if sent < len(slot.grants) and not is_written:
                attempt = Attempt(request, item, sent, slot.grants[sent])
                yield f"row {sent} of {request} is submitted", world._replace(attempts=world.attempts | {attempt})
            if request.incarnation != world.language and self.rules.r56_a_death_ends_the_slots_of_the_dead:
                failed = self.with_slot(world, number, slot._replace(state="failed"))
                yield f"{request} fails, its node is dead", failed
            status = Message("status", request, generation=item, k=sent)
            if status not in world.messages and not self.is_full(world):
                yield f"a heartbeat says of {request}: {sent} sent", self.sent(world, status)
        elif not is_written:
            reaped = self.buried(self.with_slot(world, number, None), request)
            yield f"the slot of {request} is reaped", self.sent(reaped, no)
        elif not self.rules.r53_the_pin_lasts_until_no_attempt_is_open:
            yield f"the pin of {request} ends early", self.with_slot(world, number, slot._replace(item=ANY))
        is_told = no in world.messages or request in world.tombstones
        if slot.state == "failed" and not is_told and not self.rules.r54_refused_after_the_last_attempt:
            yield f"{request} is told while its attempt is open", self.sent(self.buried(world, request), no)

    def attempt_steps(self, world: World, me: Attempt) -> Iterator[Step]:
        yield f"row {me.k} of {me.request} lands", self.landed(world, me)
        found = self.slot_of(world, me.request)
        without = world._replace(attempts=world.attempts - {me})
        if not me.late and world.failures:
            failed = without._replace(
                attempts=without.attempts | {me._replace(late=True)}, failures=world.failures - 1
            )
            if found is not None:
                failed = self.with_slot(failed, found[0], found[1]._replace(state="failed"))
            yield f"the attempt of {me.request} is said to have failed", failed
        if me.late or found is None or found[1].state == "failed":
            yield f"the engine is restarted, and the attempt of {me.request} ended", without

    def landed(self, world: World, me: Attempt) -> World:
        """Its source is what it began with, and its destination waits for it, unless that node is dead."""
        row = world.source[me.k]
        if world.owner != me.item or row is None or row[:2] != (me.item, me.k):
            return world._replace(fault=f"torn: a transfer of {me.item} reads {row} of {world.owner}")
        after = world._replace(attempts=world.attempts - {me})
        if me.request.incarnation == world.language:
            if world.cells[me.block] != (me.request, me.k):
                owner = world.cells[me.block]
                return world._replace(fault=f"stray: row {me.k} of {me.request} lands in a block of {owner}")
            after = after._replace(landed=put(after.landed, me.block, row))
        found = self.slot_of(world, me.request)
        if found is not None and found[1].state == "open" and not me.late:
            after = self.with_slot(after, found[0], found[1]._replace(sent=me.k + 1))
        return after

    def encode_takes(self, world: World, message: Message) -> World | None:
        """What comes of a message; None where it cannot be taken now."""
        request = message.request
        if message.to != world.encode:
            return world
        found = self.slot_of(world, request)
        no = Message("no", request)
        if message.kind == "init":
            return self.init_taken(world, message, found)
        if found is None:
            if message.kind == "abort":
                is_answered = world.bootstrap.request == request
                return None if is_answered else self.sent(self.buried(world, request), no)
            is_over = message.kind == "grant" and request in world.tombstones
            return self.sent(world, no) if is_over else world
        number, slot = found
        if message.kind == "grant":
            if slot.state != "open" or not message.k == len(slot.grants) == slot.sent:
                return world
            return self.with_slot(world, number, slot._replace(grants=(*slot.grants, message.block)))
        if message.kind == "abort":
            is_answered = slot.state == "taken" or world.bootstrap.request == request
            return None if is_answered else self.with_slot(world, number, slot._replace(state="failed"))
        if slot.state == "taken" or self.is_written(world, request):
            return world
        return self.buried(self.with_slot(world, number, None), request)

    def init_taken(self, world: World, message: Message, found: tuple[int, Slot] | None) -> World | None:
        request = message.request
        if world.bootstrap.at != "idle":
            return None
        if request in world.tombstones:
            return self.sent(world, Message("no", request))
        if found is not None and self.rules.r51_one_request_one_slot:
            return world
        generation, state = world.head
        if state == READY and message.generation in (ANY, generation):
            looked = Bootstrap("looked", request, generation, message.k, message.block)
            return world._replace(bootstrap=looked)
        return world._replace(bootstrap=Bootstrap("refuse", request))
