"""Rows to a peer on another host, through the Mooncake transfer engine: over TCP, or over RDMA where there is hardware.

Two halves. `MooncakeTarget` is the language side's: an engine with the payload registered, whose life is one session
(`allocator/sessions.py`). `MooncakeEngine` is the encode side's: it writes into the sessions of peers.

What Mooncake does, as measured, and what is made of it here:

- A write that it reports as failed, or that we gave up, may still land: `late_writes`.
- A batch is *done* when it is applied at the destination only from 0.3.12 on, and only with its acknowledged TCP
  framing: an older module, or `MC_TCP_PROTO=1`, is refused (R13).
- The first contact with a stopped peer blocks until it wakes, without the GIL; later submits do not. So a session is
  opened, and its first write submitted, in a thread. The call that asks for a peer's buffer address holds the GIL
  meanwhile and an empty batch aborts the process: neither is used.
- It talks over one family of addresses: IPv4, or with `MC_USE_IPV6` over IPv6, where an IPv4 address is written as a
  mapped one.
- It keeps its sockets to an endpoint that has gone, four of them, for as long as its process lives. So sessions that
  are over are counted, and the process begins anew before they fill its descriptors.
- The status of a batch is that of its first descriptor alone, so each descriptor is submitted by itself. A terminal
  status may be read once, for numbers are used again, and `submit` returning 0 is failure.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from embridge.allocator._core import Mapping
from embridge.allocator.errors import LaunchError
from embridge.allocator.peertable import PeerRecord
from embridge.allocator.sessions import LiveSession
from embridge.workers import descriptors
from embridge.workers.addresses import host_of
from embridge.workers.checks import Check, installed, library_advice, why_it_fails
from embridge.workers.timing import NS
from embridge.workers.transfer.engines.base import Engine, Moves, NoAnswer, Outcome, OwnShortage
from embridge.workers.transfer.engines.mooncake_settings import MooncakeSettings

log = logging.getLogger(__name__)

PROTO: Final = 2
"""Framing with acknowledgements: done means applied.

What a language node tells of its engine, and an encode node demands.
"""

MODULES: Final = ("mooncake-transfer-engine", "mooncake-transfer-engine-cuda13", "mooncake-transfer-engine-non-cuda")
LEAST_VERSION: Final = (0, 3, 12)  # pyproject.toml asks for no less
_FRAMING: Final = re.compile("[0-9]{1,9}", re.ASCII)
_START: Final = (
    "import sys; from embridge.workers.transfer.engines.mooncake import start_engine; "
    "from embridge.workers.transfer.engines.mooncake_settings import MooncakeSettings; "
    "start_engine('127.0.0.1', MooncakeSettings(protocol=sys.argv[1], device=sys.argv[2]))"
)
_PACKAGES: Final = {"libibverbs": "libibverbs1", "libnuma": "libnuma1", "libcudart": "the CUDA runtime"}
_PORT_TRIES: Final = 32
_SOCKETS: Final = 4  # to a session, its lanes
_MOST_OVER: Final = 128  # sessions that are over and still have sockets here
_PART: Final = 32  # of the descriptors; so many sessions have an eighth of them
_IDLE_NS: Final = NS  # a session that was not used for so long loses little when its sockets are closed
_FORGOTTEN_NS: Final = 60 * NS  # unused, an older session of a peer counts as over; if it is not, it is opened again


def module_version() -> str | None:
    """The installed Mooncake distribution and its version, as `name version`; None if there is none."""
    return installed(MODULES)


def why_unavailable() -> str:
    """Why this machine cannot run the engine, and what to install; empty if it can. Does not load it."""
    if importlib.util.find_spec("mooncake") is None:
        return (
            "Mooncake is not installed: pip install 'embridge[mooncake]' (with CUDA) or 'embridge[mooncake-non-cuda]'"
        )
    found = module_version()
    if found is not None:
        numbers = tuple(int(part) for part in found.split()[1].split(".")[:3] if part.isdigit())
        if numbers < LEAST_VERSION:
            least = ".".join(map(str, LEAST_VERSION))
            return (
                f"{found} says that a write is done before it has landed; at least {least} is needed: "
                f"pip install -U {found.split()[0]}"
            )
    if os.environ.get("MC_TCP_PROTO", str(PROTO)) != str(PROTO):
        return (
            f"MC_TCP_PROTO={os.environ['MC_TCP_PROTO']} is set: with that framing a write is reported done before it "
            "has landed; unset it"
        )
    return ""


def host_port(host: str, port: int) -> str:
    """As Mooncake names a session."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def session_name(ours: str, theirs: str, port: int) -> str:
    """How an engine on the host `ours` names a session on `theirs`."""
    is_mapped = ":" in ours and ":" not in theirs
    return host_port(f"::ffff:{theirs}" if is_mapped else theirs, port)


def why_out_of_reach(ours: str, theirs: str) -> str:
    """Why an engine on the host `ours` cannot write to one on `theirs`, and what to do; empty if it can."""
    if ":" in theirs and ":" not in ours:
        return "Mooncake goes over IPv4 here, over IPv6 there; bind both alike"
    return ""


def start_engine(host: str, settings: MooncakeSettings) -> Any:
    """An initialized Mooncake engine of this process. Raises LaunchError, saying what to install or to set."""
    why = why_unavailable()
    if why:
        raise LaunchError(f"mooncake: {why}")
    if settings.protocol == "tcp":
        os.environ["MC_FORCE_TCP"] = "1"
    else:
        os.environ.pop("MC_FORCE_TCP", None)
    descriptors.raise_limit()
    if ":" in host:
        os.environ["MC_USE_IPV6"] = "1"
    else:
        os.environ.pop("MC_USE_IPV6", None)
    os.environ.setdefault("MC_LOG_LEVEL", "ERROR")
    try:
        from mooncake.engine import TransferEngine
    except ImportError as error:
        raise LaunchError(
            f"mooncake: {module_version()} cannot be loaded: {error}; it needs libibverbs1 and libnuma1 "
            "(apt-get install libibverbs1 "
            "libnuma1), and CUDA unless it is the non-CUDA package (pip install 'embridge[mooncake-non-cuda]')"
        ) from error
    engine = TransferEngine()
    code = engine.initialize(
        host_port(host, 0) if ":" in host else host, "P2PHANDSHAKE", settings.protocol, settings.device
    )
    if code:
        raise LaunchError(
            f"mooncake: it does not start on {host} with protocol {settings.protocol}, "
            f"device {settings.device or 'any'} (code {code}); "
            "check that the address is this machine's, and for rdma that the device exists (ibv_devices)"
        )
    return engine


def _register(engine: Any, payload: Mapping) -> None:
    code = engine.register_memory(payload.address, payload.size)
    if code:
        raise LaunchError(
            f"mooncake: {payload.size} bytes are not registered (code {code}); "
            "for rdma raise the locked-memory limit (`ulimit -l`)"
        )


class MooncakeTarget:
    """The language side: an engine into whose registered payload peers write.

    It ends with its process, and its session with it.
    """

    def __init__(
        self, payload: Mapping, host: str, settings: MooncakeSettings, take_port: Callable[[int], bool]
    ) -> None:
        """Start the engine and register the payload.

        `take_port(port)` is False for a port that an earlier session had; then another engine is made, with another
        port.
        """
        self._payload = payload
        refused = []
        for _ in range(_PORT_TRIES):
            self._engine = start_engine(host, settings)
            if take_port(self._engine.get_rpc_port()):
                break
            refused.append(self._engine)  # kept, so that the next one gets another port
        else:
            raise LaunchError(f"mooncake: {_PORT_TRIES} ports in a row had been used before; restart the node")
        refused.clear()
        self.port: int = self._engine.get_rpc_port()
        _register(self._engine, payload)

    @property
    def base(self) -> int:
        return self._payload.address


@dataclass(slots=True)
class _RemoteSession:
    """One session of a peer, and how far contact with it is."""

    session: int
    name: str
    base: int
    poller_addr: str = ""  # of the node whose it is: `name` has its host
    opened: bool = False  # it has answered
    written: bool = False  # its first write has been submitted: later ones do not wait for it
    thread: threading.Thread | None = None
    failing_ns: int = 0
    next_try_ns: int = 0
    num_tries: int = 0
    why: str = ""
    used_ns: int = 0
    is_short: bool = False  # its contact failed for want of descriptors of this process


@dataclass(slots=True)
class _Ticket:
    """One attempt.

    `pending` has Mooncake's numbers of the descriptors that are under way, once all have been submitted; or one has
    failed.
    """

    deadline_ns: int
    moves: list[tuple[int, int, int]]
    pending: list[int] | None = None
    failed: bool = False


class MooncakeEngine:
    """The engine for peers on other hosts."""

    name = "mooncake"
    late_writes = True

    def __init__(self, payload: Mapping, shelf: Mapping | None, host: str, settings: MooncakeSettings) -> None:
        self._payload, self._shelf = payload, shelf  # kept mapped: the engine reads there
        self._shelf_at = shelf.address - payload.size if shelf is not None else 0  # it lies behind
        self._host = host
        self._settings = settings
        self._engine = start_engine(host, settings)
        _register(self._engine, payload)
        if shelf is not None:
            _register(self._engine, shelf)
        self._remotes: dict[int, dict[int, _RemoteSession]] = {}  # peer -> port -> its session there
        self._tickets: dict[int, _Ticket] = {}
        self._ticket = 0
        self._num_over = 0  # sessions that are over, with which there was contact

    # ---- contact

    def open(self, peer: int, record: PeerRecord, session: LiveSession) -> bool:
        remote = self._remote(peer, record, session)
        remote.used_ns = now = time.monotonic_ns()
        if remote.opened:
            return True
        if remote.is_short:
            remote.is_short = False  # if this process goes on, it tries again
            raise OwnShortage(f"no contact with {remote.name}: {remote.why}")
        if remote.thread is None and now >= remote.next_try_ns:
            self._try(remote, now)
        if now - remote.failing_ns > self._settings.connect_timeout_s * NS:
            raise NoAnswer(
                f"{record}: its Mooncake port {remote.name} does not answer for {self._settings.connect_timeout_s:g} s"
                f"{f': {remote.why}' if remote.why else ''}; check that a firewall lets all its ports through",
                int(self._settings.connect_timeout_s * NS),
            )
        return False

    def _try(self, remote: _RemoteSession, now_ns: int) -> None:
        remote.num_tries += 1
        remote.failing_ns = remote.failing_ns or now_ns
        remote.next_try_ns = now_ns + min(10 << min(remote.num_tries, 6), 500) * NS // 1000
        thread = threading.Thread(target=self._probe, args=(remote,), name=f"embridge-open-{remote.name}", daemon=True)
        remote.thread = thread
        try:
            thread.start()
        except RuntimeError as error:  # no room for a thread now; the next try makes one
            remote.why = str(error)
            remote.thread = None

    def _remote(self, peer: int, record: PeerRecord, session: LiveSession) -> _RemoteSession:
        remotes = self._remotes.setdefault(peer, {})
        remote, address = remotes.get(session.port), record.poller_addr
        if (
            remote is not None
            and remote.session == session.number
            and remote.base == session.base
            and remote.poller_addr == address
        ):
            return remote
        name = session_name(self._host, host_of(address), session.port)
        if remote is None or (remote.session, remote.name, remote.base) != (session.number, name, session.base):
            self._count_over(remote)
            remote = remotes[session.port] = _RemoteSession(session.number, name, session.base)
        remote.poller_addr = address
        return remote

    def _probe(self, remote: _RemoteSession) -> None:
        """In a thread of its own: it blocks for as long as the peer does not answer."""
        code = self._engine.send_probe(remote.name)
        if code == 0:
            remote.opened = True
        else:
            short = descriptors.why_short()
            remote.why, remote.is_short = short or f"its handshake fails (code {code})", bool(short)
        remote.thread = None

    # ---- attempts

    def submit(self, peer: int, session: LiveSession, moves: Moves) -> int:
        remote = self._remotes[peer][session.port]
        self._ticket += 1
        ticket = _Ticket(time.monotonic_ns() + int(self._settings.write_timeout_s * NS), moves)
        self._tickets[self._ticket] = ticket
        if remote.written:
            self._submit(remote, ticket)
            return self._ticket
        thread = threading.Thread(
            target=self._submit, args=(remote, ticket), name=f"embridge-first-{remote.name}", daemon=True
        )
        try:
            thread.start()
        except RuntimeError:  # no room for a thread now: nothing was submitted, and the attempt has failed
            ticket.pending, ticket.failed = [], True
        return self._ticket

    def _submit(self, remote: _RemoteSession, ticket: _Ticket) -> None:
        pending = []
        for there, here, size in ticket.moves:
            number = self._engine.transfer_submit_write(
                remote.name, here + (self._shelf_at if here >= self._payload.size else self._payload.address),
                remote.base + there, size
            )
            if number <= 0:
                remote.opened = remote.written = False  # its port is closed: the next attempt asks again
                if short := descriptors.why_short():
                    log.warning("a write to %s was not submitted: %s", remote.name, short)
                ticket.failed = True
                break
            remote.written = True
            pending.append(number)
        ticket.pending = pending

    def poll(self, ticket: int) -> Outcome:
        held = self._tickets[ticket]
        while held.pending:
            status = self._engine.transfer_check_status(held.pending[-1])
            if status == 0:
                break
            held.pending.pop()
            held.failed |= status < 0
        if held.failed or time.monotonic_ns() > held.deadline_ns:
            outcome = Outcome.FAILED
        else:
            outcome = Outcome.PENDING if held.pending is None or held.pending else Outcome.DONE
        if outcome is not Outcome.PENDING:
            del self._tickets[ticket]
        return outcome

    def close(self, peer: int) -> None:
        for remote in self._remotes.pop(peer, {}).values():
            self._count_over(remote)

    def _count_over(self, remote: _RemoteSession | None) -> None:
        self._num_over += remote is not None and remote.num_tries > 0

    def wear(self) -> str:
        now, limit, num_idle, num_remotes = time.monotonic_ns(), descriptors.limit(), 0, 0
        for remotes in self._remotes.values():
            latest = max(remote.session for remote in remotes.values())
            for port, remote in list(remotes.items()):
                unused_ns = now - remote.used_ns
                if remote.session < latest and remote.thread is None and unused_ns > _FORGOTTEN_NS:
                    self._count_over(remotes.pop(port))
                    continue
                num_remotes += 1
                num_idle += unused_ns > _IDLE_NS
        some = max(1, limit // _PART)
        if self._num_over >= min(some, _MOST_OVER):
            return f"{self._num_over} sessions of peers are over, and Mooncake keeps its sockets to them"
        if _SOCKETS * (self._num_over + num_remotes) > limit // 2 and self._num_over + num_idle >= some:
            num_open = descriptors.num_open()
            if num_open > limit * 3 // 4:
                return f"{num_open} of {limit} descriptors are open, some of them to sessions that nobody uses"
        return ""


class Mooncake(Engine):
    """Offered with the version of its framing."""

    name = "mooncake"
    number = 2
    title = "Mooncake"
    settings_class = MooncakeSettings
    is_local = False
    is_automatic = True
    has_sessions = True
    writes_to_stderr = True

    def why_unavailable(self) -> str:
        return why_unavailable()

    def check_machine(self, settings: MooncakeSettings) -> Check:
        """An engine starts, and what took effect; if not, what is missing."""
        if importlib.util.find_spec("mooncake") is None:
            extra = "mooncake" if Path("/dev/nvidiactl").exists() else "mooncake-non-cuda"
            advice = f"for peers on other machines: pip install 'embridge[{extra}]'"
            return Check(self.title, "warn", "not installed", advice)
        version, (protocol, device) = module_version() or "?", (settings.protocol, settings.device)
        if why := why_unavailable():
            return Check(self.title, "warn", version, why)
        if said := why_it_fails(_START, protocol, device):
            return Check(self.title, "warn", f"{version} does not load: {said}", library_advice(said, _PACKAGES))
        way = "tcp, forced by MC_FORCE_TCP" if protocol == "tcp" else f"rdma, device {device or 'any'}"
        return Check(self.title, "ok", f"{version}: an engine starts ({way}); done means applied (framing {PROTO})")

    def offer(self, run_socket: str) -> str:
        return str(PROTO)

    def why_refused(self, offer: str, ours: str, theirs: str) -> str:
        if not _FRAMING.fullmatch(offer):
            return f"its Mooncake has framing {offer[:16]!r}, which is no number"
        if int(offer) < PROTO:
            return f"its Mooncake has framing {offer}, which reports writes done before they land (R13)"
        return why_out_of_reach(ours, theirs)

    def make_writer(
        self, payload: Mapping, shelf: Mapping | None, *, node_id: int, incarnation: int, host: str, settings: object
    ) -> MooncakeEngine:
        assert isinstance(settings, MooncakeSettings)
        return MooncakeEngine(payload, shelf, host, settings)

    def make_session_engine(
        self, payload: Mapping, *, host: str, settings: object, take_port: Callable[[int], bool]
    ) -> MooncakeTarget:
        assert isinstance(settings, MooncakeSettings)
        return MooncakeTarget(payload, host, settings, take_port)


MOONCAKE = Mooncake()
