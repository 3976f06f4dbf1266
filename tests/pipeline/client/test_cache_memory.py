"""Memory of an item cache that other processes read: where rows lie, and when memory is used again."""

from __future__ import annotations

import ctypes
import random
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from support.caching import StubCache

from embridge import Item, ItemsTooLarge, RowsAt, SegmentError
from embridge.pipeline.client.cache_memory import CacheMemory, CacheReader, CacheView
from embridge.pipeline.quiet_torch import quieten_torch

PAGE = 4096
READ = """
import ast, sys
from embridge.allocator.rows_at import MemoryName, RowsAt
from embridge.pipeline.client.cache_memory import CacheView
name, offset, shape, dtype = ast.literal_eval(sys.argv[1])
view = CacheView(MemoryName(*name))
print(view.rows(RowsAt(MemoryName(*name), offset, shape, dtype)).sum().item())
"""


def resident_bytes(memory: CacheMemory) -> int:
    return Path(f"/proc/self/fd/{memory.name.fd}").stat().st_blocks * 512


def where(memory: CacheMemory, item: Item) -> RowsAt:
    return memory.where(item.copied().bytes, item.shape, item.dtype)


def test_another_process_reads_the_rows_of_an_item_where_they_lie() -> None:
    """D16."""
    it = StubCache(10 * PAGE, shared=True)
    it.is_ready(1, "a")
    it.come("a", 10, 3)
    it.is_ready(1, "a")
    assert it.cache.memory is not None
    at = where(it.cache.memory, it.cache.get(1, "a"))
    told = repr((tuple(at.memory), at.offset, at.shape, at.dtype))
    found = subprocess.run([sys.executable, "-c", READ, told], capture_output=True, text=True, timeout=60, check=False)
    assert (found.stdout, found.stderr) == ("30\n", "")


def test_rows_are_read_without_a_change_of_what_warns_whom(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the first of a process: a change is for all threads, and where two make one at a time, it may stay."""
    it = StubCache(10 * PAGE, shared=True)
    it.is_ready(1, "a")
    it.come("a", 10, 3)
    it.is_ready(1, "a")
    assert it.cache.memory is not None
    at, view = where(it.cache.memory, it.cache.get(1, "a")), CacheView(it.cache.memory.name)
    quieten_torch()
    monkeypatch.setattr(warnings, "catch_warnings", pytest.fail)
    assert view.rows(at).sum().item() == 30


def test_memory_goes_back_with_the_last_view_whatever_has_become_of_the_item() -> None:
    """R70: whoever tells others of rows keeps the item until they have read it."""
    it = StubCache(2 * PAGE, shared=True)
    memory = it.cache.memory
    assert memory is not None
    it.is_ready(1, "a")
    it.come("a", 2 * PAGE)
    it.is_ready(1, "a")
    item = it.cache.get(1, "a")
    at = where(memory, item)
    view = CacheView(memory.name)
    it.cache.end(1)
    it.cache.forget("a")
    it.is_ready(2, "b")
    assert not it.come("b", 2 * PAGE)  # somebody still looks at a
    assert view.rows(at).flatten().tolist() == [ord("a")] * 2 * PAGE
    item.release()
    assert it.come("b", 2 * PAGE)
    assert it.is_ready(2, "b")
    assert view.rows(where(memory, it.cache.get(2, "b"))).flatten().tolist() == [ord("b")] * 2 * PAGE
    assert resident_bytes(memory) <= 3 * PAGE


def test_what_fits_by_its_bytes_finds_a_place_whatever_has_come_and_gone() -> None:
    """Items of any size, in any order: memory in use is never more than their pages, and no item is written over."""
    memory, rng = CacheMemory(256 * PAGE), random.Random(5)
    held: list[np.ndarray[tuple[int], np.dtype[np.uint8]]] = []
    for turn in range(2000):
        pages = rng.choice((1, 1, 2, 3, 8, 60, 130))
        while sum(rows.nbytes for rows in held) > (256 - pages) * PAGE:
            held.pop(rng.randrange(len(held)))
        held.append(memory.take(pages * PAGE))
        held[-1][:: PAGE // 2] = turn % 251
        assert resident_bytes(memory) <= 256 * PAGE
        which = rng.randrange(len(held))
        assert (held[which][:: PAGE // 2] == held[which][0]).all()


def test_items_smaller_than_a_page_take_no_more_than_the_cache_may_have() -> None:
    """P12: an item takes a page, and is counted so; one that fits by its bytes alone makes others go, or is refused."""
    it, keys = StubCache(4 * PAGE, shared=True), "abcdefgh"
    assert it.cache.memory is not None
    for user, key in enumerate(keys):
        it.is_ready(user, key)
        assert it.come(key, PAGE // 2)
        assert it.is_ready(user, key)
        it.cache.end(user)
        counts = it.cache.counts()
        assert counts.bytes == counts.items * PAGE == resident_bytes(it.cache.memory) <= 4 * PAGE
    assert counts.evictions == len(keys) - 4
    assert it.is_ready(20, keys[-4:])
    it.cache.end(20)
    it.is_ready(21, "abcde")
    assert [it.come(key, 1) for key in "abcd"] == [True, True, True, False]
    with pytest.raises(ItemsTooLarge, match=f"{5 * PAGE} bytes > max_bytes {4 * PAGE}"):
        it.is_ready(21, "abcde")


def test_no_bytes_take_a_page_which_comes_back() -> None:
    """P12: else more would seem to be free with each."""
    memory = CacheMemory(3 * PAGE)
    for _ in range(5):
        memory.take(0)
    kept = [memory.take(size) for size in (1, PAGE, PAGE)]
    kept[0][:] = kept[1][:] = kept[2][:] = 1
    del kept[2], kept[0]
    kept.append(memory.take(PAGE + 1))
    kept[1][:] = 2
    assert resident_bytes(memory) == 3 * PAGE == sum(memory.taken(rows.nbytes) for rows in kept)


def test_a_name_that_leads_to_another_file_or_to_none_is_refused() -> None:
    memory = CacheMemory(PAGE)
    name = memory.name
    for wrong in (name._replace(inode=name.inode + 1), name._replace(fd=999), name._replace(pid=1 << 22)):
        with pytest.raises(SegmentError, match=f"items of process {wrong.pid}"):
            CacheView(wrong)
    view = CacheView(name)
    with pytest.raises(ValueError, match="offset"):
        view.rows(RowsAt(name, 1 << 40, (1, 8), "uint8"))


def test_what_cannot_be_mapped_is_said() -> None:
    with pytest.raises(SegmentError, match="lower max_bytes"):
        CacheMemory(1 << 50)


def test_memory_that_nobody_uses_is_kept_and_no_more_than_the_cache_may_have() -> None:
    """P12."""
    memory = CacheMemory(4 * PAGE)
    first = memory.take(3 * PAGE)
    first[:] = 1
    begin = memory.where(first, (1, 1), "uint8").offset
    del first
    assert resident_bytes(memory) == 3 * PAGE
    again, more = memory.take(2 * PAGE), memory.take(PAGE)
    assert [memory.where(rows, (1, 1), "uint8").offset - begin for rows in (again, more)] == [0, 2 * PAGE]
    assert resident_bytes(memory) == 3 * PAGE
    del again, more
    large = memory.take(4 * PAGE)
    large[:] = 2
    assert resident_bytes(memory) <= 4 * PAGE


def num_mapped() -> int:
    return Path("/proc/self/maps").read_text().count("memfd:embridge-items")


def test_a_reader_lets_go_of_a_cache_when_it_reads_another() -> None:
    """That of a node that is gone would stay in memory for as long as its workers live."""
    before, reader = num_mapped(), CacheReader()
    for value in (1, 2, 3):
        memory = CacheMemory(PAGE)
        rows = memory.take(PAGE)
        rows[:] = value
        at = memory.where(rows, (1, PAGE), "uint8")
        assert reader.load(at, "cpu").flatten().tolist() == [value] * PAGE
        assert reader.rows(at).device.type == "cpu"
        del rows, memory
        assert num_mapped() == before + 1  # the reader's
    del reader
    assert num_mapped() == before


def test_memory_that_is_locked_is_none_and_stays_for_what_fits_there() -> None:
    """The kernel takes no locked memory back: of a process that has called `mlockall`, say."""
    memory = CacheMemory(4 * PAGE)
    one, other = memory.take(PAGE), memory.take(PAGE)
    address = ctypes.c_void_p(one.__array_interface__["data"][0])
    assert ctypes.CDLL(None).mlock(address, ctypes.c_size_t(2 * PAGE)) == 0
    del one
    with pytest.raises(MemoryError):
        memory.take(3 * PAGE)
    assert memory.take(PAGE).__array_interface__["data"][0] == address.value
    del other
