"""An engine that the product does not know: one class, as its file would have it, and its line in the list of
engines.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from support.alone import EncodeAlone, LanguageAlone
from support.rows import rows_of
from support.simulation import ROWS_A_ROOM, World
from support.simulation.engine import SimulatedEngine

from embridge.allocator._core import Mapping
from embridge.allocator.errors import FailureCode
from embridge.allocator.geometry import Geometry, Role
from embridge.allocator.records import Peer
from embridge.allocator.status import Phase
from embridge.pipeline.config import PipelineConfig
from embridge.pipeline.scheduler.request import EmbeddingRequest
from embridge.pipeline.scheduler.transfer_queue import TransferQueue
from embridge.workers import messages as msg
from embridge.workers.transfer import engines
from embridge.workers.transfer.engines.base import Engine, SessionEngine, TransferEngine


class CableEnd:
    """What peers write through."""

    port = 7


class Cable(Engine):
    """It tells peers the gauge of its cable, and takes those with the same."""

    name = "cable"
    number = 3
    title = "Cable"
    is_local = False
    is_automatic = False
    has_sessions = True
    writes_to_stderr = True

    def __init__(self, gauge: int) -> None:
        self.gauge = gauge
        self.made: list[tuple[object, ...]] = []

    def why_unavailable(self) -> str:
        return "" if self.gauge else "there is no cable"

    def offer(self, run_socket: str) -> str:
        return f"gauge {self.gauge}"

    def why_refused(self, offer: str, ours: str, theirs: str) -> str:
        return "" if offer == f"gauge {self.gauge}" else f"its cable has {offer}, ours gauge {self.gauge}"

    def make_writer(
        self, payload: Mapping, *, node_id: int, incarnation: int, host: str, settings: object
    ) -> TransferEngine:
        self.made.append((node_id, incarnation, host, settings))
        return SimulatedEngine.__new__(SimulatedEngine)

    def make_session_engine(
        self, payload: Mapping, *, host: str, settings: object, take_port: Callable[[int], bool]
    ) -> SessionEngine:
        return CableEnd()


CABLE = Cable(5)


@pytest.fixture(autouse=True)
def _one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its line in the list."""
    monkeypatch.setattr(engines, "ENGINES", (*engines.ENGINES, CABLE))


def test_the_setting_names_it() -> None:
    assert engines.choices() == ("auto", "shm", "mooncake", "cable")
    assert PipelineConfig(engine="cable").engine == "cable"
    assert engines.engines_for("cable", "127.0.0.1") == (CABLE,)
    assert CABLE not in engines.engines_for("auto", "10.0.0.7")
    assert engines.has_sessions(3)
    assert not engines.has_sessions(1)
    assert engines.log_name("worker0", ["cable"]) == "worker0.cable.log"


def test_a_transfer_worker_is_given_its_writer_with_its_settings() -> None:
    payload = EncodeAlone().node.payload
    made = engines.make_writers(
        [CABLE], payload, node_id=1, incarnation=2, host="10.0.0.7", settings={"cable": "red", "shm": None}
    )
    assert list(made) == [3]
    assert CABLE.made[-1] == (1, 2, "10.0.0.7", "red")


@pytest.mark.parametrize(
    ("offers", "answer"),
    [
        ({"cable": "gauge 5", "mooncake": "2"}, "cable"),
        ({"cable": "gauge 6"}, "no engine in common: its cable has gauge 6, ours gauge 5"),
        ({"mooncake": "2"}, "no engine in common: it offers no Cable"),
    ],
)
def test_an_encode_node_judges_its_offer(offers: dict[str, str], answer: str) -> None:
    node = EncodeAlone()
    node.actor("bootstrap").ctx.engines = (CABLE,)
    node.forget_sent()
    node.register(node_id=11, offers=offers)
    replies: list[msg.Registered | msg.Refused] = [*node.sent(msg.Registered), *node.sent(msg.Refused)]
    (reply,) = replies
    if isinstance(reply, msg.Refused):
        assert reply.reason.startswith(answer)
        return
    assert reply.engine == answer
    peer = node.control.peers.find(11, 1)
    assert peer is not None
    assert (node.control.peers.get(peer, Peer.ENGINE), node.control.peers.record(peer).offer) == (3, "gauge 5")


def test_an_encode_node_that_chooses_an_engine_that_was_not_offered_is_refused() -> None:
    """P12, P16: the requests that ask it fail, with a reason."""
    node = LanguageAlone()
    receiver = node.client.receiver("tcp://10.0.0.20:1", 1)
    node.settle()
    answer = msg.Registered(node.envelope(node_id=20), "tcp://10.0.0.20:1", "tcp://10.0.0.20:2", "cable", 16, 16)
    node.hears("bootstrap", answer, address="tcp://10.0.0.20:1")
    failure = receiver.failure_exception()
    assert failure is not None
    assert failure.code == FailureCode.PROTOCOL
    assert failure.reason == "encode node tcp://10.0.0.20:1 chose engine cable, which this node has not offered"


def test_a_request_travels_through_it() -> None:
    """Registered with, granted under its sessions, and written: whole nodes, which know it by its line alone."""
    world = World(1, engine=CABLE)
    geometry = Geometry(hidden_size=2, block_size=4, num_blocks=4)
    encode = world.node("encode", Role.ENCODE, geometry, node_id=1)
    language = world.node("language", Role.LANGUAGE, geometry, node_id=10)
    sender = encode.new_client().sender(1, 30)
    rows = rows_of(geometry, 1, 0, 30)._replace(fill_ids=torch.arange(ROWS_A_ROOM, ROWS_A_ROOM + 30, dtype=torch.int32))
    queue = TransferQueue(language.new_client())
    request = EmbeddingRequest(room=1, bootstrap_addr=encode.own_addresses.bootstrap_addr)
    queue.add(request)
    ended: list[EmbeddingRequest] = []

    def is_done() -> bool:
        sender.poll()
        finished, failed = queue.pop_transferred()
        assert not failed, failed
        ended.extend(finished)
        return bool(ended)

    sender.write(0, *rows)
    world.run(is_done, limit_s=60)
    result = request.result
    assert result is not None
    for name, given in rows._asdict().items():
        assert given is None or torch.equal(given.view(torch.uint8), getattr(result, name).view(torch.uint8)), name
    assert sender.poll() == Phase.Success
    for node, other in ((encode, 10), (language, 1)):
        peer = node.control.peers.find(other, 1)
        assert peer is not None
        assert node.control.peers.get(peer, Peer.ENGINE) == 3
    assert language.control.sessions.number(0) > 0
    request.release()
    world.close()
