"""A shelf of published items: every interleaving of those who publish, look up, pin, read, retire and free them,
without a lock, and are killed or stopped between any two steps.

An item is a set of rows under a key. It has an *entry*, whose *head* is one word, `generation, state, publisher`:
FILLING, READY (it may be found), RETIRED (it may not, and who has pinned it may still read), OVER (the entry is free).
Heads only rise. Beside the head stand the hash of the key and the list of blocks; a block's cell names the entry and
the generation that it belongs to. A reader pins an entry by a word of its own *ledger*. One counter draws generations;
below one word, the *floor*, nothing is visible.

Modelled: keys that move from one entry to another as they are published anew, entries and blocks that are used again,
publishers that cross, evictors that cross and finish each other's work, hashes that are read torn, a floor that rises,
killed publishers (whose device may write on), readers and evictors, and those that are stopped for ever.

Not modelled: hashes that are equal by chance (the whole key is compared, too), which victim is the best (times of last
use are hints: here any item may be the victim), two sets of many ways (here one of one or two), bytes and quotas, slots
of transfers, which pin as readers do (`item_fetch_model`).
"""

from __future__ import annotations

from collections.abc import Iterator

from explorer import Finding, explore, put
from item_shelf_readers import Lookups
from item_shelf_world import (
    ALIVE,
    BURIED,
    DEAD,
    FILLING,
    FREE,
    HASHES,
    NOBODY,
    OVER,
    READY,
    RETIRED,
    STOPPED,
    Cell,
    Evictor,
    Head,
    Item,
    Publisher,
    Reader,
    Rows,
    Rules,
    Setting,
    World,
    Write,
)

Step = tuple[str, World]


class Model(Lookups):
    """The steps of one setting under some rules."""

    def initial(self) -> World:
        s = self.setting
        return World(
            heads=(Head(),) * s.entries,
            hashes=((NOBODY, NOBODY),) * s.entries,
            lists=((),) * s.entries,
            cells=(FREE,) * s.blocks,
            rows=(None,) * s.blocks,
            ledgers=((0,) * s.entries,) * len(s.lookups),
            counts=(0,) * s.entries,
            publishers=(Publisher(),) * len(s.publications),
            readers=(Reader(),) * len(s.lookups),
            evictors=(Evictor(),) * s.evictors,
            processes=(ALIVE,) * (len(s.publications) + len(s.lookups)),
            evictions=s.evictions,
            clears=s.clears,
            exceptions=s.exceptions,
            publisher_kills=s.publisher_kills,
            reader_kills=s.reader_kills,
            evictor_kills=s.evictor_kills,
            publisher_stops=s.publisher_stops,
            reader_stops=s.reader_stops,
        )

    def steps(self, world: World) -> Iterator[Step]:
        for label, after in self.all_steps(world):
            yield label, after if after.fault else self.witnessed(world, after)

    def witnessed(self, before: World, world: World) -> World:
        """No block goes from one owner to another; a lookup's key was not there all the time."""
        for block, (old, new) in enumerate(zip(before.cells, world.cells, strict=True)):
            if old != new and FREE not in (old, new):
                return world._replace(fault=f"stolen: block {block} goes from {old} to {new}")
        for r, me in enumerate(world.readers):
            if me.always and not self.is_visible(world, self.setting.lookups[r][me.item]):
                world = world._replace(readers=put(world.readers, r, me._replace(always=False)))
        return world

    def all_steps(self, world: World) -> Iterator[Step]:
        for p, publisher in enumerate(world.publishers):
            if world.processes[p] == ALIVE:
                yield from self.publisher_steps(world, p, publisher)
            yield from self.publisher_deaths(world, p, publisher)
        for r, reader in enumerate(world.readers):
            if world.processes[len(world.publishers) + r] == ALIVE:
                yield from self.reader_steps(world, r, reader)
            yield from self.reader_deaths(world, r, reader)
        for v, evictor in enumerate(world.evictors):
            yield from self.evictor_steps(world, v, evictor)
        if world.clears:
            floors = world.floors | {world.drawn + 1}
            drawn = world._replace(drawn=world.drawn + 1, floors=floors, clears=world.clears - 1)
            yield f"all is to be cleared below {drawn.drawn}", drawn
        for floor in sorted(world.floors):
            following = max(world.floor, floor) if self.rules.r48_the_floor_only_rises else floor
            cleared = world._replace(floors=world.floors - {floor}, cleared=max(world.cleared, floor))
            yield f"the floor is {following}", cleared._replace(floor=following)
        for write in sorted(world.late):
            landed = self.landed(world, write, Rows(NOBODY, 0, write.k, False))
            yield f"the device of p{write.publisher} writes on", landed._replace(late=world.late - {write})

    def goal(self, world: World) -> bool:
        """All are through, and what is held is published, or is held by somebody who is stopped for ever."""
        num_publishers = len(world.publishers)
        held = {(me.entry, me.generation) for p, me in enumerate(world.publishers) if world.processes[p] == STOPPED}
        for r, ledger in enumerate(world.ledgers):
            if world.processes[num_publishers + r] == STOPPED:
                held |= set(enumerate(ledger))
        return (
            self.are_through(world)
            and not (world.floors or world.unburied)
            and all(evictor.at == "idle" for evictor in world.evictors)
            and all(c == FREE or c in held or world.heads[c.entry][:2] == (c.generation, READY) for c in world.cells)
            and all(head.state in (OVER, READY) or (e, head.generation) in held for e, head in enumerate(world.heads))
        )

    def are_through(self, world: World) -> bool:
        """Every publisher and reader has done all that it is to do, or is dead, or is stopped for ever."""
        s = self.setting
        idle = [me.at == "idle" and me.item == len(s.publications[p]) for p, me in enumerate(world.publishers)]
        idle += [me.at == "idle" and me.item == len(s.lookups[r]) for r, me in enumerate(world.readers)]
        return all(
            state in (BURIED, STOPPED) or (state == ALIVE and is_idle)
            for state, is_idle in zip(world.processes, idle, strict=True)
        )

    # ---- publishers

    def publisher_steps(self, world: World, p: int, me: Publisher) -> Iterator[Step]:
        if me.at == "idle":
            if me.item < len(self.setting.publications[p]):
                item = self.setting.publications[p][me.item]
                if not item.replaces and self.is_visible(world, item.key):
                    yield f"p{p} finds key {item.key} published already", self.on(world, p, self.next(me))
                else:
                    yield f"p{p} begins to publish key {item.key}", self.on(world, p, me._replace(at="way"))
            return
        item = self.setting.publications[p][me.item]
        if me.at in ("way", "draw", "take"):
            yield from self.taking_steps(world, p, me, item)
        elif me.at in ("ready", "older", "give up"):
            yield from self.ending_steps(world, p, me, item)
        else:
            yield from self.filling_steps(world, p, me, item)

    def on(self, world: World, p: int, me: Publisher) -> World:
        return world._replace(publishers=put(world.publishers, p, me))

    def next(self, me: Publisher) -> Publisher:
        return Publisher(item=me.item + 1)

    def is_written_to(self, world: World, p: int) -> bool:
        """A device writes on for this publisher."""
        return any(write.publisher == p for write in world.late)

    def filling(self, p: int, generation: int) -> Head:
        return Head(generation, FILLING, p if self.rules.r45_filling_names_its_publisher else NOBODY)

    def taking_steps(self, world: World, p: int, me: Publisher, item: Item) -> Iterator[Step]:
        draws_late = self.rules.r39_the_generation_is_drawn_after_the_look
        if me.at == "way":
            if not draws_late and not me.generation:
                drawn = world._replace(drawn=world.drawn + 1)
                yield f"p{p} draws generation {drawn.drawn}", self.on(drawn, p, me._replace(generation=drawn.drawn))
                return
            entry = next((e for e, head in enumerate(world.heads) if head.state == OVER), None)
            if entry is not None:
                looking = me._replace(at="draw", entry=entry, looked=world.heads[entry])
                yield f"p{p} looks at the head of entry {entry}", self.on(world, p, looking)
            elif item.replaces and self.rules.r47_a_dropped_one_retires_them_too:
                older = me._replace(at="older", generation=world.drawn + 1)
                yield f"p{p} finds no entry", self.on(world._replace(drawn=world.drawn + 1), p, older)
            else:
                yield f"p{p} finds no entry: dropped", self.on(world, p, self.next(me))
        elif me.at == "draw":
            generation = world.drawn + 1 if draws_late else me.generation
            drawn = world._replace(drawn=max(world.drawn, generation))
            yield f"p{p} has generation {generation}", self.on(drawn, p, me._replace(at="take", generation=generation))
        elif me.at == "take":
            assert me.looked is not None
            taken = self.moved(world, me.entry, me.looked, self.filling(p, me.generation))
            if taken is None:
                again = Publisher("way", me.item, generation=0 if draws_late else me.generation)
                yield f"p{p} has lost entry {me.entry}", self.on(world, p, again)
            else:
                at = "hash" if self.rules.r40_all_is_written_before_ready else "early"
                yield f"p{p} takes entry {me.entry}", self.on(taken, p, me._replace(at=at, looked=None))

    def filling_steps(self, world: World, p: int, me: Publisher, item: Item) -> Iterator[Step]:
        entry, halves, length = me.entry, self.setting.halves, self.setting.length
        cell = Cell(entry, me.generation)
        if me.at == "early":
            early = self.moved(world, entry, self.filling(p, me.generation), Head(me.generation, READY, p)) or world
            yield f"p{p} says ready before its rows are there", self.on(early, p, me._replace(at="hash"))
        elif me.at == "hash":
            stored = (HASHES[item.key][0], world.hashes[entry][1]) if halves else HASHES[item.key]
            written = world._replace(hashes=put(world.hashes, entry, stored))
            label = f"p{p} writes {'half of ' * halves}the hash of entry {entry}"
            yield label, self.on(written, p, me._replace(at="second half" if halves else "blocks"))
        elif me.at == "second half":
            written = world._replace(hashes=put(world.hashes, entry, (world.hashes[entry][0], HASHES[item.key][1])))
            yield f"p{p} writes the rest of the hash of entry {entry}", self.on(written, p, me._replace(at="blocks"))
        elif me.at == "blocks" and len(me.blocks) == length:
            listed = world._replace(lists=put(world.lists, entry, me.blocks))
            yield f"p{p} writes the block list of entry {entry}", self.on(listed, p, me._replace(at="half"))
        elif me.at == "blocks":
            block = next((b for b, owner in enumerate(world.cells) if owner == FREE), None)
            if block is not None:
                owned = world._replace(cells=put(world.cells, block, cell))
                holding = me._replace(blocks=(*me.blocks, block))
                if len(holding.blocks) == length and not halves:
                    owned = owned._replace(lists=put(world.lists, entry, holding.blocks))
                    holding = holding._replace(at="half")
                yield f"p{p} acquires block {block}", self.on(owned, p, holding)
            elif self.rules.r49_who_finds_no_room_gives_back:
                yield f"p{p} finds no block", self.on(world, p, me._replace(at="give up"))
        elif me.at in ("half", "rest"):
            is_whole, block = me.at == "rest", me.blocks[me.k]
            write = Write(p, entry, me.generation, block, me.k)
            if world.exceptions:
                late = world.late | {write} if self.setting.has_device else world.late
                broken = self.on(world, p, me._replace(at="give up", k=0))
                yield f"p{p} is broken off", broken._replace(late=late, exceptions=world.exceptions - 1)
            landed = self.landed(world, write, Rows(item.key, item.version, me.k, is_whole))
            following = me._replace(at="rest")
            if is_whole:
                is_last = me.k + 1 == length
                at, k, blocks = ("ready", 0, ()) if is_last else ("half", me.k + 1, me.blocks)
                following = me._replace(at=at, k=k, blocks=blocks)
            yield f"p{p} writes {'the rest' if is_whole else 'half'} of block {block}", self.on(landed, p, following)

    def ending_steps(self, world: World, p: int, me: Publisher, item: Item) -> Iterator[Step]:
        entry, mine = me.entry, Head(me.generation, READY, p)
        if me.at == "ready":
            is_late = self.rules.r40_all_is_written_before_ready
            ready = self.moved(world, entry, self.filling(p, me.generation), mine) if is_late else world
            following = self.next(me) if self.setting.older_ones_stay else me._replace(at="older")
            label = f"p{p} makes entry {entry} ready"
            if ready is None:
                yield label, world._replace(fault=f"stolen: entry {entry} was taken from p{p}, which lives")
            else:
                yield label, self.on(ready, p, following)
        elif me.at == "give up" and self.is_written_to(world, p) and self.rules.r45_nor_given_back:
            return
        elif me.at == "give up" and me.blocks:
            freed = self.freed(world, Cell(entry, me.generation), me.blocks[-1])
            yield f"p{p} gives block {me.blocks[-1]} back", self.on(freed, p, me._replace(blocks=me.blocks[:-1]))
        elif me.at == "give up":
            over = self.moved(world, entry, self.filling(p, me.generation), Head(me.generation, OVER)) or world
            retires = item.replaces and self.rules.r47_a_dropped_one_retires_them_too
            following = me._replace(at="older") if retires else self.next(me)
            yield f"p{p} gives entry {entry} back: dropped", self.on(over, p, following)
        elif me.k == self.setting.entries:
            yield f"p{p} returns", self.on(world, p, self.next(me))
        else:
            head, following = world.heads[me.k], me._replace(k=me.k + 1)
            is_of_its_key = head.state == READY and world.hashes[me.k] == HASHES[item.key]
            if is_of_its_key and head.generation < me.generation:
                after = self.moved(world, me.k, head, head._replace(state=RETIRED)) or world
                yield f"p{p} retires generation {head.generation} of its key", self.on(after, p, following)
            elif is_of_its_key and head.generation > me.generation:
                after = world
                if entry != NOBODY:
                    after = self.moved(world, entry, mine, mine._replace(state=RETIRED)) or world
                yield f"p{p} retires itself for generation {head.generation}", self.on(after, p, following)
            else:
                yield f"p{p} finds no older one in entry {me.k}", self.on(world, p, following)

    def publisher_deaths(self, world: World, p: int, me: Publisher) -> Iterator[Step]:
        state = world.processes[p]
        if state == ALIVE and world.publisher_kills and me.at != "idle":
            late = world.late
            if self.setting.has_device and me.at in ("half", "rest"):
                late = late | {Write(p, me.entry, me.generation, me.blocks[me.k], me.k)}
            killed = world._replace(processes=put(world.processes, p, DEAD), late=late)
            yield f"p{p} is killed", killed._replace(publisher_kills=world.publisher_kills - 1)
        if state == ALIVE and world.publisher_stops:
            stopped = world._replace(processes=put(world.processes, p, STOPPED))
            yield f"p{p} is stopped for ever", stopped._replace(publisher_stops=world.publisher_stops - 1)
        writes_on = self.rules.r45_not_before_its_device_is_silent and self.is_written_to(world, p)
        if (state == DEAD and not writes_on) or p in world.unburied:
            heads = tuple(
                head._replace(state=RETIRED) if head.state == FILLING and head.publisher == p else head
                for head in world.heads
            )
            buried = self.buried(world._replace(heads=heads), p)
            after = self.on(buried, p, Publisher(item=me.item + self.setting.reborn)) if state == DEAD else buried
            yield f"p{p} is buried, and what it filled is retired", after
        if state == DEAD and self.setting.reborn and not self.rules.r45_retired_before_the_lane_is_anothers:
            yield f"p{p} has a successor before it is buried", self.on(self.reborn(world, p), p, self.next(me))
        if state == BURIED and not self.rules.r45_filling_names_its_publisher:
            for entry, head in enumerate(world.heads):
                if head.state == FILLING:
                    after = world._replace(heads=put(world.heads, entry, head._replace(state=RETIRED)))
                    yield f"entry {entry}, which somebody fills, is retired after a death", after

    # ---- evictors

    def evictor_steps(self, world: World, v: int, me: Evictor) -> Iterator[Step]:
        def now(after: World, evictor: Evictor = Evictor()) -> World:  # noqa: B008  # which nobody changes
            return after._replace(evictors=put(after.evictors, v, evictor))

        if me.at == "idle":
            at = "older" if self.rules.r47_the_oldest_goes_first and self.setting.entries > 1 else "retire"
            at = at if self.rules.r43_retired_before_the_scan else "pre"
            for entry, head in enumerate(world.heads):
                picked = Evictor("retire", entry, head.generation)
                if head.state == READY and world.evictions:
                    after = now(world, picked._replace(at=at))
                    yield f"v{v} picks entry {entry}", after._replace(evictions=world.evictions - 1)
                if head.state == READY and head.generation < world.floor:
                    yield f"v{v} finds entry {entry} below the floor", now(world, picked)
                if head.state == RETIRED:
                    yield f"v{v} finds entry {entry} retired", now(world, picked)
            return
        if world.evictor_kills:
            yield f"v{v} is killed", now(world)._replace(evictor_kills=world.evictor_kills - 1)
        head, entry = world.heads[me.entry], me.entry
        is_ready = head[:2] == (me.generation, READY)
        retired = head._replace(state=RETIRED)
        if me.at == "older":
            other = world.heads[me.k]
            is_older = other.state == READY and other.generation < me.generation and is_ready
            after, at = world, "older" if me.k + 1 < self.setting.entries else "retire"
            if is_older and world.hashes[me.k] == world.hashes[entry]:
                after = self.moved(world, me.k, other, other._replace(state=RETIRED)) or world
            k = me.k + 1 if at == "older" else 0
            yield f"v{v} retires what is older of its key in entry {me.k}", now(after, me._replace(at=at, k=k))
        elif me.at == "pre":
            is_pinned = any(self.is_pinned(world, entry, me.generation, r) for r in range(len(world.ledgers)))
            yield f"v{v} scans before it retires", now(world) if is_pinned else now(world, me._replace(at="now"))
        elif me.at == "now":
            moved = self.moved(world, entry, head, retired) if is_ready else None
            yield f"v{v} retires entry {entry}", now(world) if moved is None else now(moved, me._replace(at="cells"))
        elif me.at == "retire":
            if is_ready:
                after = self.moved(world, entry, head, retired) or world
                yield f"v{v} retires entry {entry}", now(after, me._replace(at="scan"))
            elif head[:2] == (me.generation, RETIRED) and self.rules.r44_anyone_finishes_a_retired_entry:
                yield f"v{v} helps with entry {entry}", now(world, me._replace(at="scan"))
            else:
                yield f"v{v} finds entry {entry} changed", now(world)
        elif me.at == "scan":
            if head[:2] != (me.generation, RETIRED):
                yield f"v{v} finds entry {entry} finished", now(world)
            elif self.is_pinned(world, entry, me.generation, me.k):
                heads = world.heads
                if not self.rules.r43_retired_is_final:
                    heads = put(heads, entry, head._replace(state=READY))
                yield f"v{v} finds entry {entry} pinned by r{me.k}", now(world._replace(heads=heads))
            else:
                is_last = me.k + 1 == len(world.ledgers)
                following = me._replace(at="cells", k=0) if is_last else me._replace(k=me.k + 1)
                yield f"v{v} finds no pin of r{me.k}", now(world, following)
        elif me.k < self.setting.blocks:
            freed = self.freed(world, Cell(entry, me.generation), me.k)
            yield f"v{v} frees block {me.k} if it is entry {entry}'s", now(freed, me._replace(k=me.k + 1))
        else:
            over = self.moved(world, entry, Head(me.generation, RETIRED, head.publisher), Head(me.generation, OVER))
            yield f"v{v} says that entry {entry} is over", now(over or world)


def explore_shelf(setting: Setting, rules: Rules | None = None, *, max_states: int = 300_000) -> Finding:
    """A fault is `falls` (a head does), `torn` (a reader sees rows that are not its key's), `stray` (rows land in
    somebody else's block), `stolen` (an entry or a block from who has it), `absent` (a key is said to be, which is
    there), `old` (rows that were replaced or cleared), or `stuck`.
    """
    model = Model(setting, rules or Rules())
    return explore(
        model.initial(), model.steps, violated=lambda world: world.fault, goal=model.goal, max_states=max_states
    )
