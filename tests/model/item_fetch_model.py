"""A published item that is fetched from another node: every interleaving of question, answer, transfer and eviction.

A request names a key and, if it wants, a generation, where other requests name a room. It is refused at once, or gets a
slot, whose *item word* (entry and generation) pins the item as a reader's word does; then it is a transfer as any
other.

Modelled: one key that is published, evicted and published anew; fetches one after the other, of one row or two, through
one block or two; rows that are kept for a retry; messages that are lost, doubled, late and reordered; attempts that are
said to have failed, and land late; aborts; the deaths of either node and of the encode node's bootstrap.

Not modelled: what the rules of a transfer show elsewhere (`transfer_model`, `identity_model`, `repair_model`): taint
and fences, of which here an engine's restart is left; several destinations; how heads and pins are
(`item_shelf_model`).
"""

from __future__ import annotations

from collections.abc import Iterator

from explorer import Finding, explore, put
from item_fetch_encode import EncodeNode
from item_fetch_world import ANY, FREE, NONE, OVER, READY, Cell, Fetch, Head, Message, Request, Rules, Setting, World

Step = tuple[str, World]


class Model(EncodeNode):
    """The steps of one setting under some rules."""

    def initial(self) -> World:
        s = self.setting
        return World(
            head=Head(),
            owner=None,
            source=(None,) * s.length,
            slots=(None,) * s.slots,
            cells=(FREE,) * s.blocks,
            landed=(None,) * s.blocks,
            fetches=(Fetch(),) * s.fetches,
            publications=s.publications,
            evictions=s.evictions,
            aborts=s.aborts,
            failures=s.failures,
            doubles=s.doubles,
            losses=s.losses,
            encode_kills=s.encode_kills,
            language_kills=s.language_kills,
            bootstrap_kills=s.bootstrap_kills,
        )

    def steps(self, world: World) -> Iterator[Step]:
        yield from self.encode_steps(world)
        yield from self.language_steps(world)
        for message in sorted(world.messages):
            without = world._replace(messages=world.messages - {message})
            is_for_encode = message.kind in ("init", "grant", "abort", "close")
            after = (self.encode_takes if is_for_encode else self.language_takes)(without, message)
            label = f"{message.kind} of {message.request}"
            if after is not None:
                yield f"{label} arrives", after
                if world.doubles and not self.is_full(after) and not after.fault:
                    doubled = after._replace(messages=after.messages | {message}, doubles=world.doubles - 1)
                    yield f"{label} arrives, and once more later", doubled
            if world.losses:
                yield f"{label} is lost", without._replace(losses=world.losses - 1)

    def goal(self, world: World) -> bool:
        """Every fetch has ended, and nothing is held but what is published."""
        return (
            all(fetch.at == "end" for fetch in world.fetches)
            and all(cell == FREE for cell in world.cells)
            and all(slot is None for slot in world.slots)
            and not world.attempts
            and world.head.state in (READY, OVER)
            and (world.owner is None) == (world.head.state == OVER)
        )

    # ---- the language node

    def with_fetch(self, world: World, me: Fetch) -> World:
        return world._replace(fetches=put(world.fetches, me.request.number, me))

    def ended(self, world: World, me: Fetch, *, frees: bool = True) -> World:
        after = self.with_fetch(world, me._replace(at="end", block=NONE))
        is_freed = frees and me.block != NONE
        return after._replace(cells=put(after.cells, me.block, FREE)) if is_freed else after

    def language_steps(self, world: World) -> Iterator[Step]:
        for number, me in enumerate(world.fetches):
            if me.at == "new":
                yield from self.open_steps(world, number)
            elif me.at != "end":
                yield from self.fetch_steps(world, me)
        if world.known != world.encode and all(fetch.at in ("new", "end") for fetch in world.fetches):
            yield "the language node knows the new encode node", world._replace(known=world.encode)
        if world.language_kills:
            ended = (Fetch("end", me.request) if me.at != "new" else me for me in world.fetches)
            yield (
                "the language node is killed, and launched again",
                world._replace(
                    language=world.language + 1,
                    known=world.encode,
                    cells=(FREE,) * self.setting.blocks,
                    landed=(None,) * self.setting.blocks,
                    fetches=tuple(ended),
                    language_kills=world.language_kills - 1,
                ),
            )

    def open_steps(self, world: World, number: int) -> Iterator[Step]:
        if FREE not in world.cells or any(fetch.at != "end" for fetch in world.fetches[:number]):
            return
        block, request = world.cells.index(FREE), Request(world.language, number)
        before = world.fetches[number - 1].rows if self.setting.keeps_rows and number else ()
        kept = before if len(before) < self.setting.length else ()
        generation = kept[-1].generation if kept else ANY
        opened = self.with_fetch(world, Fetch("ask", request, generation, kept, block))
        label = f"{request} is opened with {len(kept)} rows"
        yield label, opened._replace(cells=put(world.cells, block, Cell(request, len(kept))))

    def fetch_steps(self, world: World, me: Fetch) -> Iterator[Step]:
        request = me.request
        if world.known != world.encode:
            yield f"{request} ends, the encode node is dead and fenced", self.ended(world, me)
        if me.at in ("ask", "get") and world.aborts:
            yield f"{request} is aborted", self.with_fetch(world, me._replace(at="abort"))._replace(
                aborts=world.aborts - 1
            )
        if me.at == "get" and me.block == NONE:
            if FREE in world.cells:
                block = world.cells.index(FREE)
                taken = world._replace(cells=put(world.cells, block, Cell(request, len(me.rows))))
                yield f"{request} takes block {block}", self.with_fetch(taken, me._replace(block=block))
            return
        message = Message("abort", request, world.encode)
        if me.at == "ask":
            wanted = me.generation if self.rules.r57_the_retry_names_its_generation else ANY
            message = Message("init", request, world.encode, wanted, len(me.rows), me.block)
        elif me.at == "get":
            message = Message("grant", request, world.encode, k=len(me.rows), block=me.block)
        if world.known == world.encode and message not in world.messages and not self.is_full(world):
            yield f"{request} sends its {message.kind}", self.sent(world, message)

    def language_takes(self, world: World, message: Message) -> World:
        """What comes of a message."""
        if message.request.incarnation != world.language:
            return world
        me = world.fetches[message.request.number]
        if message.kind == "no":
            frees = self.rules.r59_a_refusal_frees_what_came_with_the_question
            return self.ended(world, me, frees=frees) if me.at in ("ask", "get", "abort") else world
        if me.at == "end":
            is_known = world.known == world.encode
            return self.sent(world, Message("close", me.request, world.encode)) if is_known else world
        if me.at in ("new", "abort"):
            return world
        if message.k > len(me.rows) and me.block != NONE:
            return self.row_taken(world, me, message)
        return self.with_fetch(world, me._replace(at="get", generation=message.generation)) if me.at == "ask" else world

    def row_taken(self, world: World, me: Fetch, message: Message) -> World:
        row, k = world.landed[me.block], len(me.rows)
        if row is None or row[:2] != (message.generation, k):
            return world._replace(fault=f"torn: row {k} of {me.request} is said to be there, and is {row}")
        rows = (*me.rows, row)
        freed = world._replace(cells=put(world.cells, me.block, FREE))
        following = Fetch("get", me.request, message.generation, rows)
        if len(rows) < self.setting.length:
            return self.with_fetch(freed, following)
        if len({(row.generation, row.made_by) for row in rows}) > 1:
            return world._replace(fault=f"mixed: {me.request} has rows of two versions: {rows}")
        return self.sent(self.ended(freed, following), Message("close", me.request, world.encode))


def explore_fetch(setting: Setting, rules: Rules | None = None, *, max_states: int = 300_000) -> Finding:
    """A fault is `torn` (a transfer reads, or a result has, a block that is another's), `stray` (a row lands where none
    waits for it), `mixed` (rows of two versions in one result), or `stuck`.
    """
    model = Model(setting, rules or Rules())
    return explore(
        model.initial(), model.steps, violated=lambda world: world.fault, goal=model.goal, max_states=max_states
    )
