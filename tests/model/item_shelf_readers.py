"""The readers of the model of the shelf (`item_shelf_model`): they look a key up, pin what they found, look again,
read, and unpin.
"""

from __future__ import annotations

from collections.abc import Iterator

from explorer import put
from item_shelf_world import (
    ALIVE,
    DEAD,
    HASHES,
    NAMES,
    NOBODY,
    READY,
    STOPPED,
    Found,
    Reader,
    Words,
    World,
)

Step = tuple[str, World]


class Lookups(Words):
    """The steps of readers."""

    def reader_steps(self, world: World, r: int, me: Reader) -> Iterator[Step]:
        if me.at == "idle":
            if me.item < len(self.setting.lookups[r]):
                yield self.begins(world, r, me)
            return
        key = self.setting.lookups[r][me.item]
        if me.at == "see":
            yield self.sees(world, r, me, key)
        elif me.at in ("half", "compare"):
            j = int(me.at == "compare")
            is_equal = world.hashes[me.entry][j] == HASHES[key][j]
            if not self.setting.halves:
                is_equal = world.hashes[me.entry] == HASHES[key]
            if not is_equal:
                other = me._replace(at="see", entry=me.entry + 1, generation=0)
                yield f"r{r} finds another key in entry {me.entry}", self.at(world, r, other)
            elif me.at == "half" and self.setting.halves:
                yield f"r{r} finds half of its hash in entry {me.entry}", self.at(world, r, me._replace(at="compare"))
            else:
                is_best = me.found.entry == NOBODY or self.rules.r47_the_newest_counts
                is_best = is_best and me.generation > me.found.generation
                found = Found(me.entry, me.generation) if is_best else me.found
                following = me._replace(at="see", entry=me.entry + 1, generation=0, found=found)
                yield f"r{r} finds its key in entry {me.entry}", self.at(world, r, following)
        elif me.at in ("pin", "late", "look"):
            yield self.pins(world, r, me)
        else:
            yield self.reads(world, r, me, key)

    def at(self, world: World, r: int, me: Reader) -> World:
        return world._replace(readers=put(world.readers, r, me))

    def begins(self, world: World, r: int, me: Reader) -> Step:
        key = self.setting.lookups[r][me.item]
        returned = [item for p, one in enumerate(world.publishers) for item in self.setting.publications[p][: one.item]]
        newest = max((item.version for item in returned if item.key == key and item.version > 1), default=0)
        judged = me._replace(floor=world.cleared, promised=max(newest, me.promised))
        if not self.setting.one_look:
            seeing = judged._replace(at="see", entry=0, always=self.is_visible(world, key))
            return f"r{r} looks key {key} up", self.at(world, r, seeing)
        ways = [
            (head.generation, entry)
            for entry, head in enumerate(world.heads)
            if head.state == READY and head.generation >= world.floor and world.hashes[entry] == HASHES[key]
        ]
        if not ways:
            absent = Reader(item=me.item + 1, promised=judged.promised)
            return f"r{r} finds key {key} not published", self.at(world, r, absent)
        generation, entry = max(ways)
        return f"r{r} finds key {key}", self.at(world, r, judged._replace(at="pin", entry=entry, generation=generation))

    def sees(self, world: World, r: int, me: Reader, key: int) -> Step:
        if me.entry < self.setting.entries:
            head = world.heads[me.entry]
            may_be_it = head.state == READY
            if self.rules.r48_the_floor_is_looked_at_again:
                may_be_it = may_be_it and head.generation >= world.floor
            seeing = me._replace(seen=(*me.seen, head[:2]))
            comparing = seeing._replace(at="half", generation=head.generation)
            following = comparing if may_be_it else seeing._replace(entry=me.entry + 1)
            label = f"r{r} sees generation {head.generation} of entry {me.entry} {NAMES[head.state]}"
            return label, self.at(world, r, following)
        if me.found.entry != NOBODY:
            entry, generation = me.found
            pinning = me._replace(at="pin", entry=entry, generation=generation, before=None, seen=(), found=Found())
            return f"r{r} takes entry {entry}", self.at(world, r, pinning)
        if self.rules.r46_absent_after_two_equal_looks and me.before != me.seen:
            return f"r{r} looks once more", self.at(world, r, me._replace(entry=0, before=me.seen, seen=()))
        absent = self.at(world, r, Reader(item=me.item + 1, promised=me.promised))
        fault = f"absent: key {key} was there all the time, and r{r} says it is not" if me.always else None
        return f"r{r} says that key {key} is not published", absent._replace(fault=fault)

    def pins(self, world: World, r: int, me: Reader) -> Step:
        entry, generation = me.entry, me.generation
        head, floor = world.heads[entry], world.floor if self.rules.r48_the_floor_is_looked_at_again else 0
        is_there = head[:2] == (generation, READY)
        pinned = self.pinned(world, r, entry, generation)
        reading = me._replace(at="read", always=False)
        again = Reader("see", me.item, 0, always=me.always, floor=me.floor, promised=me.promised)
        if self.setting.one_look:
            again = Reader(item=me.item, promised=me.promised)
        if me.at == "pin" and self.is_others(world, entry, generation):
            return f"r{r} finds another generation pinned by its process", self.at(world, r, again)
        if me.at == "late":
            return f"r{r} pins entry {entry} behind its look", self.at(pinned, r, reading)
        if me.at == "pin" and not self.rules.r41_pins_before_it_looks:
            return f"r{r} looks first", self.at(world, r, me._replace(at="late") if is_there else again)
        if me.at == "pin":
            looking = me._replace(at="look") if self.rules.r41_looks_again_behind_its_pin else reading
            return f"r{r} pins entry {entry}", self.at(pinned, r, looking)
        if is_there and generation >= floor:
            return f"r{r} finds entry {entry} as it was", self.at(world, r, reading)
        return f"r{r} finds entry {entry} changed", self.at(self.pinned(world, r, entry, 0), r, again)

    def reads(self, world: World, r: int, me: Reader, key: int) -> Step:
        if me.k == self.setting.length:
            unpinned = self.pinned(world, r, me.entry, 0)
            return f"r{r} unpins", self.at(unpinned, r, Reader(item=me.item + 1, promised=me.promised))
        label = f"r{r} reads block {me.k} of its item"
        if me.generation < me.floor:
            return label, world._replace(fault=f"old: r{r} has generation {me.generation}, the floor was {me.floor}")
        if len(world.lists[me.entry]) <= me.k:
            return label, world._replace(fault=f"torn: r{r} finds no block {me.k} in the list of entry {me.entry}")
        rows = world.rows[world.lists[me.entry][me.k]]
        if rows is None or rows != (key, rows.version, me.k, True):
            return label, world._replace(fault=f"torn: r{r} reads {rows} as block {me.k} of key {key}")
        if rows.version < me.promised:
            return label, world._replace(fault=f"old: r{r} reads version {rows.version} after {me.promised}")
        promised = rows.version if rows.version > 1 else 0
        return label, self.at(world, r, me._replace(k=me.k + 1, promised=promised))

    def reader_deaths(self, world: World, r: int, me: Reader) -> Iterator[Step]:
        number = len(world.publishers) + r
        state = world.processes[number]
        if state == ALIVE and world.reader_kills and me.at != "idle":
            killed = world._replace(processes=put(world.processes, number, DEAD))
            yield f"r{r} is killed", killed._replace(reader_kills=world.reader_kills - 1)
        if state == ALIVE and world.reader_stops and me.at == "read":
            stopped = world._replace(processes=put(world.processes, number, STOPPED))
            yield f"r{r} is stopped for ever", stopped._replace(reader_stops=world.reader_stops - 1)
        if state == DEAD or number in world.unburied:
            ledgers = put(world.ledgers, r, (0,) * self.setting.entries)
            buried = self.buried(world._replace(ledgers=ledgers), number)
            after = self.at(buried, r, Reader(item=me.item + self.setting.reborn)) if state == DEAD else buried
            yield f"r{r} is buried, and its ledger is empty", after
        if state == DEAD and self.setting.reborn and not self.rules.r42_a_ledger_is_cleared_before_it_is_anothers:
            reborn = self.at(self.reborn(world, number), r, Reader(item=me.item + 1))
            yield f"r{r} has a successor before it is buried", reborn
