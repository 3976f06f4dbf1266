"""The entries of other nodes: what is read of one is what stands there, however often it was read before."""

from __future__ import annotations

from pathlib import Path

import pytest

from embridge.allocator.control import Control, format_control
from embridge.allocator.geometry import Geometry, Limits, Role
from embridge.allocator.layout import ControlLayout
from embridge.allocator.peertable import PeerRecord
from embridge.allocator.records import Peer
from embridge.allocator.segment import map_segment

GEOMETRY = Geometry(hidden_size=8, block_size=8, num_blocks=16)
LIMITS = Limits(num_slots=128, max_clients=2)
FIRST = PeerRecord(7, 1, 16, 8, 64, 1, "tcp://1.1.1.1:1", "tcp://1.1.1.1:2", "a.sock", 5, "key of 7")
NEXT = PeerRecord(8, 3, 32, 9, 65, 2, "tcp://2.2.2.2:1", "tcp://2.2.2.2:2", "", 6)


@pytest.fixture
def views(tmp_path: Path) -> tuple[Control, Control]:
    """A process that registers nodes, and one that reads."""
    size = ControlLayout.of(Role.ENCODE, GEOMETRY, LIMITS).size
    path = tmp_path / "control"
    path.write_bytes(bytes(size))
    with path.open("r+b") as file:
        mappings = [map_segment(file.fileno(), size) for _ in range(2)]
    format_control(mappings[0], Role.ENCODE, GEOMETRY, LIMITS, node_id=1, incarnation=1, now_ns=1)
    return Control(mappings[0]), Control(mappings[1])


def test_an_entry_is_read_as_it_stands_also_by_whoever_has_read_another_there(views: tuple[Control, Control]) -> None:
    """R14, D15: the texts that were decoded for the last node are not the next one's."""
    writer, reader = (control.peers for control in views)
    assert (writer.register(FIRST, 1, ()), reader.find(7, 1)) == (0, 0)
    for _ in range(2):
        assert reader.record(0) == FIRST
        assert (reader.key(0), reader.poller_addr(0)) == ("key of 7", "tcp://1.1.1.1:2")
    assert reader.where_its_bootstrap_is(0) == ("tcp://1.1.1.1:1", "key of 7")
    assert reader.where_its_poller_is(0) == ("tcp://1.1.1.1:2", "key of 7")
    writer.put(0, Peer.REGISTRATION, 9)
    assert reader.record(0) == FIRST._replace(registration=9)
    assert writer.bury(0)
    for peer in range(1, writer.num_peers):
        assert writer.register(FIRST._replace(node_id=100 + peer), 2, ()) == peer
    assert writer.register(NEXT, 3, ()) == 0
    assert (reader.record(0), reader.key(0), reader.find(7, 1), reader.find(8, 3)) == (NEXT, "", None, 0)


def test_a_node_is_found_where_it_stands_now(views: tuple[Control, Control]) -> None:
    """R14: not where it stood when it was found last, and not an incarnation that is dead."""
    writer, reader = (control.peers for control in views)
    for peer in range(3):
        assert writer.register(FIRST._replace(node_id=peer + 1), 1, ()) == peer
    assert [reader.find(node_id, 1) for node_id in (3, 2, 1, 3, 4)] == [2, 1, 0, 2, None]
    assert writer.bury(2)
    assert reader.find(3, 1) is None
    assert writer.register(FIRST._replace(node_id=3, incarnation=2), 2, ()) == 3
    assert (reader.find(3, 1), reader.find(3, 2)) == (None, 3)
    for peer, incarnation in ((-1, 1), (0, 2), (2, 1)):
        assert not reader.is_it(peer, incarnation)
    assert reader.is_it(0, 1)
    assert reader.is_here(0, (1, 1))
    assert not reader.is_here(0, (1, 2))
    assert not reader.is_here(2, (3, 1))
