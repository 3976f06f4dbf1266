"""An engine that the product does not know: one class, as its file would have it, and its line in the list of
engines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from support.alone import EncodeAlone, LanguageAlone
from support.rows import rows_of
from support.simulation import ROWS_A_ROOM, World
from support.simulation.engine import SimulatedEngine

from embridge.allocator._core import Mapping
from embridge.allocator.errors import FailureCode
from embridge.allocator.geometry import Geometry, Role
from embridge.allocator.records import Peer
from embridge.allocator.settings import check, setting
from embridge.allocator.status import Phase
from embridge.pipeline.cli import main, options
from embridge.pipeline.cli.checks import run_checks
from embridge.pipeline.cli.options import node_config
from embridge.pipeline.config import ConfigError, PipelineConfig, all_settings
from embridge.pipeline.node.launch_messages import decode_config, encode_config
from embridge.pipeline.scheduler.request import EmbeddingRequest
from embridge.pipeline.scheduler.transfer_queue import TransferQueue
from embridge.pipeline.settings_page import page
from embridge.workers import messages as msg
from embridge.workers.checks import Check
from embridge.workers.transfer import engines
from embridge.workers.transfer.engines.base import Engine, SessionEngine, TransferEngine


@dataclass(frozen=True, slots=True, kw_only=True)
class CableSettings:
    """What its file would have."""

    colour: str = setting("grey", "What it looks like.", choices=lambda: ("grey", "red"))
    length_m: float = setting(2.5, "From one host to the other.", gt=0, lt=100, is_flag=True)

    def __post_init__(self) -> None:
        check(self)


class CableEnd:
    """What peers write through."""

    port = 7


class Cable(Engine):
    """It tells peers the gauge of its cable, and takes those with the same."""

    name = "cable"
    number = 3
    title = "Cable"
    settings_class = CableSettings
    is_local = False
    is_automatic = False
    has_sessions = True
    writes_to_stderr = True

    def __init__(self, gauge: int) -> None:
        self.gauge = gauge
        self.made: list[tuple[object, ...]] = []

    def why_unavailable(self) -> str:
        return "" if self.gauge else "there is no cable"

    def check_machine(self, settings: CableSettings) -> Check:
        if settings.colour == "red":
            raise RuntimeError("the red one is not plugged in")
        return Check(self.title, "warn", f"{settings.length_m:g} m, {settings.colour}", "use a red one")

    def offer(self, run_socket: str) -> str:
        return f"gauge {self.gauge}"

    def why_refused(self, offer: str, ours: str, theirs: str) -> str:
        return "" if offer == f"gauge {self.gauge}" else f"its cable has {offer}, ours gauge {self.gauge}"

    def make_writer(
        self, payload: Mapping, shelf: Mapping | None, *, node_id: int, incarnation: int, host: str, settings: object
    ) -> TransferEngine:
        self.made.append((node_id, incarnation, host, settings))
        return SimulatedEngine.__new__(SimulatedEngine)

    def make_session_engine(
        self, payload: Mapping, *, host: str, settings: object, take_port: Callable[[int], bool]
    ) -> SessionEngine:
        return CableEnd()


CABLE = Cable(5)


@pytest.fixture(autouse=True)
def _one_line(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Its line in the list."""
    monkeypatch.setattr(engines, "ENGINES", (*engines.ENGINES, CABLE))
    options._setting_options.cache_clear()
    yield
    options._setting_options.cache_clear()


def test_the_setting_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert engines.choices() == ("auto", "shm", "mooncake", "cable")
    assert PipelineConfig(role="encode", engine="cable").engine == "cable"
    assert engines.engines_for("cable", "127.0.0.1") == (CABLE,)
    assert CABLE not in engines.engines_for("auto", "10.0.0.7")
    assert "shared memory to peers on this host, Mooncake to others." in engines.how_rows_travel()
    monkeypatch.setattr(Cable, "is_automatic", True)
    assert "Mooncake or Cable to others." in page()
    assert engines.has_sessions(3)
    assert not engines.has_sessions(1)
    assert engines.log_name("worker0", ["cable"]) == "worker0.cable.log"


def test_its_settings_are_a_group_of_the_node(tmp_path: Path) -> None:
    """TOML, environment, flag, check, page and the way to the launcher have it from its class."""
    (tmp_path / "node.toml").write_text('[cable]\ncolour = "red"\nlength_m = 3.5\n')
    config = PipelineConfig.from_toml(tmp_path / "node.toml", {"EMBRIDGE_CABLE_LENGTH_M": "4"}, role="encode")
    assert config.engine_settings["cable"] == CableSettings(colour="red", length_m=4.0)
    assert config.engine_settings.keys() == {"mooncake", "cable"}
    assert decode_config(encode_config(config)) == config
    config = PipelineConfig(role="encode", engine_settings={"cable": CableSettings(colour="red")})
    assert config.engine_settings["cable"].length_m == 2.5
    with pytest.raises(
        ConfigError, match=r"^cable\.length_m: 100\.0 is outside 0 to 100 \(from EMBRIDGE_CABLE_LENGTH_M\)"
    ):
        PipelineConfig.from_env({"EMBRIDGE_CABLE_LENGTH_M": "100"}, role="encode")
    assert [it.name for group, it in all_settings() if group == "cable"] == ["colour", "length_m"]
    assert "--cable-length-m FLOAT" in CliRunner().invoke(main, ["launch", "--help"]).output
    assert node_config(None, {"role": "encode", "cable_length_m": 5.0}).engine_settings["cable"].length_m == 5.0
    with pytest.raises(ConfigError, match=r"^cable\.length_m: 100\.0 is outside 0 to 100 \(from --cable-length-m\)"):
        node_config(None, {"role": "encode", "cable_length_m": 100.0})
    section = " ".join(page().partition("## Cable: `[cable]`\n")[2].split())
    assert "`--cable-length-m`, `EMBRIDGE_CABLE_LENGTH_M`, TOML `cable.length_m`." in section
    colour = "- **`colour`** (text; one of grey, red; default grey): What it looks like. `EMBRIDGE_CABLE_COLOUR`, "
    colour += "TOML `cable.colour`."
    assert colour in section


def test_doctor_says_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its settings of the environment; and where its check breaks, the others are there."""
    others = [check.name for check in run_checks() if check.name != "Cable"]
    assert Check("Cable", "warn", "2.5 m, grey", "use a red one") in run_checks()
    monkeypatch.setenv("EMBRIDGE_CABLE_COLOUR", "red")
    assert Check("Cable", "fail", "RuntimeError: the red one is not plugged in") in run_checks()
    assert [check.name for check in run_checks() if check.name != "Cable"] == others
    assert "Mooncake" in others


def test_a_transfer_worker_is_given_its_writer_with_its_settings() -> None:
    payload = EncodeAlone().node.payload
    config = PipelineConfig(role="encode", engine_settings={"cable": {"colour": "red"}})
    made = engines.make_writers(
        [CABLE], payload, None, node_id=1, incarnation=2, host="10.0.0.7", settings=config.engine_settings
    )
    assert list(made) == [3]
    assert CABLE.made[-1] == (1, 2, "10.0.0.7", CableSettings(colour="red"))


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
    answer = msg.Registered(node.envelope(node_id=20), "tcp://10.0.0.20:1", "tcp://10.0.0.20:2", "cable", 16, 16, "")
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
