"""Mappings: what they show, what keeps them, and what they refuse."""

from __future__ import annotations

import errno
import gc
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from core_support import SharedMemory

from embridge.allocator import _core
from embridge.allocator._core import BlockCells, Consumer, Doorbell, Mapping, Producer, StatusTable, Words

PAGE = os.sysconf("SC_PAGESIZE")


def num_maps(address: int) -> int:
    """How many lines of /proc/self/maps begin at an address."""
    return sum(line.startswith(f"{address:x}-") for line in Path("/proc/self/maps").read_text().splitlines())


def test_two_mappings_of_a_descriptor_show_the_same_bytes() -> None:
    memory = SharedMemory(PAGE)
    one, two = memory.map(), memory.map()
    memoryview(one)[5:10] = b"hello"
    assert bytes(memoryview(two)[5:10]) == b"hello"
    assert one.address != two.address


def test_the_descriptor_may_be_closed_and_the_mapping_stays() -> None:
    fd = os.memfd_create("closed")
    os.ftruncate(fd, PAGE)
    mapping = Mapping(fd, PAGE)
    os.close(fd)
    memoryview(mapping)[0] = 7
    assert memoryview(mapping)[0] == 7


def test_a_view_keeps_the_mapping_and_the_last_reference_unmaps_it() -> None:
    """P9; a handle that outlives its mapping would be a SIGSEGV."""
    mapping = SharedMemory(PAGE).map()
    address = mapping.address
    view = np.frombuffer(mapping, np.uint8)
    words = Words(mapping, 0, 8)
    del mapping
    gc.collect()
    view[0] = 3
    assert words.load(0) == 3
    assert num_maps(address) == 1
    del view
    assert num_maps(address) == 1
    del words
    assert num_maps(address) == 0


def shared_at(address: int) -> bool:
    """Whether a file is mapped there, and not memory of this process's own."""
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if line.startswith(f"{address:x}-")]
    return any("memfd" in line for line in lines)


def test_a_mapping_that_is_closed_lets_go_of_its_memory_at_once_and_its_handles_reach_nothing() -> None:
    """P9: no reference has to be collected first, and no pointer goes anywhere else."""
    memory = SharedMemory(PAGE)
    mapping, other = memory.map(), memory.map()
    words, bell = Words(mapping, 0, 8), Doorbell(mapping, 64)
    words.store(0, 7)
    assert shared_at(mapping.address)
    assert mapping.close() == 0
    assert not shared_at(mapping.address)
    assert words.load(0) == 0
    words.store(0, 9)
    bell.ring()
    assert Words(other, 0, 8).load(0) == 7
    assert Words(other, 64, 1).load(0) == 0
    assert mapping.close() == 0
    with pytest.raises(BufferError, match="the mapping is closed"):
        np.frombuffer(mapping, np.uint8)
    with pytest.raises(ValueError, match="the mapping is closed"):
        Words(mapping, 0, 8)


@pytest.mark.parametrize("end", ["the array", "a slice of it", "a memoryview"])
def test_a_mapping_that_is_closed_keeps_its_memory_for_the_views_that_there_are(end: str) -> None:
    """P9, B12: what somebody looks at stays as it is, until the last of them is gone."""
    memory = SharedMemory(PAGE)
    mapping = memory.map()
    looks: dict[str, Callable[[], npt.NDArray[np.uint8] | memoryview]] = {
        "the array": lambda: np.frombuffer(mapping, np.uint8),
        "a slice of it": lambda: np.frombuffer(mapping, np.uint8)[5:9],
        "a memoryview": lambda: memoryview(mapping),
    }
    view = looks[end]()
    second = memoryview(mapping)
    view[0] = 3
    assert mapping.close() == 2
    second.release()
    assert mapping.close() == 1
    assert shared_at(mapping.address)
    assert view[0] == 3
    with pytest.raises(BufferError):
        memoryview(mapping)
    del view
    assert not shared_at(mapping.address)


def test_a_buffer_that_was_refused_counts_for_nothing() -> None:
    mapping = SharedMemory(PAGE).map(writable=False)
    with pytest.raises(BufferError):
        _core.copy(mapping, bytes(8), np.array([[0, 0, 8]], np.int64), 1)
    assert mapping.close() == 0


def test_a_mapping_that_is_discarded_leaves_zeroes_to_whoever_looks() -> None:
    mapping = SharedMemory(PAGE).map()
    view = np.frombuffer(mapping, np.uint8)
    view[0] = 3
    mapping.discard()
    assert not shared_at(mapping.address)
    assert view[0] == 0
    view[0] = 4
    address = mapping.address
    del view, mapping
    assert num_maps(address) == 0


def written_to() -> int:
    """Bytes of memory that this process may write to and that is its own, as the kernel counts them."""
    status = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in status if line.startswith("VmData:"))
    return int(line.split()[1]) << 10


def test_a_mapping_that_is_abandoned_counts_as_no_memory_of_this_process() -> None:
    """P13: a machine that promises no more than it has would refuse it, once for each process of a node."""
    size = 1 << 30  # without memory
    mapping, control = SharedMemory(size).map(), SharedMemory(size).map()
    before = written_to()
    control.discard()
    between = written_to()
    mapping.abandon()
    assert between - before > size // 2
    assert written_to() - between < size // 2
    assert not shared_at(mapping.address)
    with pytest.raises(BufferError):
        memoryview(mapping)


@pytest.mark.parametrize("alignment", [PAGE, 1 << 16, 1 << 21])
def test_a_mapping_is_aligned_as_asked_and_reserves_no_more_than_its_size(alignment: int) -> None:
    size = 3 * PAGE + 1
    memory = SharedMemory(size)
    mapping = memory.map(alignment=alignment)
    assert mapping.address % alignment == 0
    assert mapping.size == size == len(memoryview(mapping))
    line = next(x for x in Path("/proc/self/maps").read_text().splitlines() if x.startswith(f"{mapping.address:x}-"))
    first, last = (int(x, 16) for x in line.split()[0].split("-"))
    assert last - first == 4 * PAGE


def test_a_file_that_is_too_short_is_an_error_and_no_sigbus() -> None:
    """P13."""
    memory = SharedMemory(PAGE)
    with pytest.raises(OSError, match="the file has 4096") as caught:
        Mapping(memory.fd, PAGE + 1)
    assert caught.value.errno == errno.ENXIO


@pytest.mark.parametrize("size", [0, -1])
def test_a_size_that_is_none_is_refused(size: int) -> None:
    memory = SharedMemory(PAGE)
    with pytest.raises(ValueError, match="size"):
        Mapping(memory.fd, size)


@pytest.mark.parametrize("alignment", [0, -4096, 3 * PAGE])
def test_an_alignment_that_is_no_power_of_two_is_refused(alignment: int) -> None:
    with pytest.raises(ValueError, match="alignment"):
        SharedMemory(PAGE).map(alignment=alignment)


def test_a_mapping_lies_at_the_address_that_was_asked_for_or_nowhere() -> None:
    """R10: a fence maps the payload where it was never before."""
    memory = SharedMemory(2 * PAGE)
    free = SharedMemory(2 * PAGE).map()
    address = free.address
    with pytest.raises(OSError, match="File exists"):
        memory.map(address=address)
    assert memoryview(free)[0] == 0
    del free
    gc.collect()
    mapping = memory.map(address=address)
    assert mapping.address == address
    with pytest.raises(ValueError, match="address"):
        memory.map(address=address + 8)


def test_a_descriptor_that_is_none_is_an_oserror() -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        Mapping(-1, PAGE)


def test_a_read_only_mapping_can_be_looked_at_and_not_changed() -> None:
    memory = SharedMemory(16 * PAGE)
    Words(memory.map(), 0, 1).store(0, 42)
    mapping = memory.map(writable=False)
    assert memoryview(mapping).readonly
    mapping.populate(0, mapping.size)
    words = Words(mapping, 0, 1)
    cells = BlockCells(mapping, 64, PAGE, 64)
    status = StatusTable(mapping, 2 * PAGE, 3 * PAGE, 8 * PAGE, 64, 1)
    assert words.load(0) == 42
    assert cells.counts() == (64, 0, 0, 0)
    assert status.load(3) == 0
    out, pages = np.zeros(64, np.uint32), np.zeros(1, np.uint32)
    changes: list[Callable[[], object]] = [
        lambda: words.store(0, 1),
        lambda: words.add(0, 1),
        lambda: words.set_bits(0, 1),
        lambda: words.clear_bits(0, 1),
        lambda: words.raise_to(0, 100),
        lambda: words.compare_exchange(0, 42, 1),
        lambda: status.open(0, 1),
        lambda: status.advance(0, 1, 1, 0, 1),
        lambda: status.mark(0, 0),
        lambda: status.changed(0, pages, 1, out),
        lambda: cells.acquire(1, 1, 1, 0, out, 0),
        lambda: cells.expose(out, 0, 1, 1, 1, 1),
        lambda: cells.release(out, 0, 1, 1, 1),
        lambda: cells.quarantine(out, 0, 1, 1, 1),
        lambda: cells.reclaim(1, 1, True),
        lambda: cells.end_quarantine(1, 1),
        lambda: cells.end_exposure(0, 0, 1),
        lambda: _core.format_ring(mapping, 0, 2),
        lambda: Producer(mapping, 0),
        lambda: Consumer(mapping, 0),
        lambda: Doorbell(mapping, 0),
    ]
    for change in changes:
        with pytest.raises(ValueError, match="read-only"):
            change()
    with pytest.raises(ValueError, match="read-only"):
        np.frombuffer(mapping, np.uint8)[0] = 1
    assert words.load(0) == 42


def test_populate_touches_and_changes_nothing() -> None:
    memory = SharedMemory(64 * PAGE)
    mapping = memory.map()
    memoryview(mapping)[3 * PAGE : 3 * PAGE + 4] = b"data"
    mapping.populate(offset=1, size=40 * PAGE)
    mapping.populate(0, 0)
    assert bytes(memoryview(mapping)[3 * PAGE : 3 * PAGE + 4]) == b"data"
    assert os.fstat(memory.fd).st_blocks * 512 >= 40 * PAGE
    assert mapping.lock(0, PAGE) in (0, errno.ENOMEM, errno.EPERM, errno.EAGAIN)
    assert isinstance(mapping.advise_huge(), int)


@pytest.mark.parametrize(("offset", "size"), [(0, PAGE + 1), (PAGE, 1), (PAGE + 1, 0)])
def test_what_lies_outside_a_mapping_is_neither_touched_nor_locked(offset: int, size: int) -> None:
    mapping = SharedMemory(PAGE).map()
    with pytest.raises(ValueError, match=r"offset|size"):
        mapping.populate(offset, size)
    with pytest.raises(ValueError, match=r"offset|size"):
        mapping.lock(offset, size)
    with pytest.raises(OverflowError):
        mapping.lock(-1, 1)


@pytest.mark.parametrize(
    "make",
    [
        lambda m: Words(m, PAGE - 8, 2),
        lambda m: Words(m, PAGE + 8, 0),
        lambda m: Words(m, -8, 1),
        lambda m: Words(m, 4, 1),
        lambda m: Words(m, 0, 1, 12),
        lambda m: Words(m, 0, 2, 1 << 62),
        lambda m: Words(m, 0, -1),
        lambda m: Words(m, 0, 1 << 62),
        lambda m: StatusTable(m, 0, 512, 3072, 63, 1),
        lambda m: StatusTable(m, 0, 512, 3072, 0, 1),
        lambda m: StatusTable(m, 0, 512, 3072, 64, 0),
        lambda m: StatusTable(m, 0, PAGE, 3072, 64, 1),
        lambda m: StatusTable(m, 0, 512, PAGE - 8, 64, 2),
        lambda m: StatusTable(m, 4, 512, 3072, 64, 1),
        lambda m: BlockCells(m, 0, 0, 0),
        lambda m: BlockCells(m, 0, 0, 513),
        lambda m: BlockCells(m, 0, PAGE - 8, 2),
        lambda m: BlockCells(m, 0, 12, 2),
        lambda m: BlockCells(m, 0, 0, 1 << 40),
        lambda m: Doorbell(m, 32),
        lambda m: Doorbell(m, PAGE),
        lambda m: Producer(m, 0),
        lambda m: Consumer(m, PAGE - 64),
        lambda m: _core.format_ring(m, 32, 2),
        lambda m: _core.format_ring(m, 0, 64),
        lambda m: _core.format_ring(m, 0, 3),
        lambda m: _core.format_ring(m, 0, 1),
        lambda m: _core.format_ring(m, 0, 1 << 21),
        lambda m: _core.format_ring(m, 0, -2),
    ],
)
def test_a_handle_on_what_is_outside_or_misaligned_is_refused(make: Callable[[Mapping], object]) -> None:
    with pytest.raises(ValueError, match=r"outside|multiple|power of two|num_|count"):
        make(SharedMemory(PAGE).map())


def test_a_handle_is_made_of_a_mapping_and_nothing_else() -> None:
    for make in (lambda x: Words(x, 0, 1), lambda x: Doorbell(x, 0), lambda x: BlockCells(x, 0, 0, 1)):
        with pytest.raises(TypeError):
            make(bytearray(PAGE))


def test_a_mapping_cannot_be_sent_to_another_process_by_mistake() -> None:
    with pytest.raises(TypeError, match="pickle"):
        pickle.dumps(SharedMemory(PAGE).map())


def test_the_constants_are_those_of_the_layout() -> None:
    assert (_core.EPOCH_BITS, _core.PHASE_BITS, _core.SENT_BITS) == (28, 3, 32)
    assert (_core.RECORD_BYTES, _core.RING_HEADER_BYTES, _core.DOORBELL_BYTES) == (64, 192, 64)
    assert _core.MAX_EPOCH == 2**28 - 1
    assert _core.NON_TEMPORAL_BYTES >= 64 << 10
