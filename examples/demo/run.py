"""The demo: an encode node, an encoder process, a language node, and a scheduler's loop in this process.

Everything is what a deployment would use; only the model is small. This file starts and stops the processes;
`scheduler.py` is the loop.
"""

from __future__ import annotations

import json
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from rich.console import Console
from torch import multiprocessing

from embridge import Node, PipelineConfig, attach, launch
from embridge.demo import encoder, photographs
from embridge.demo.display import Display, Line, summary_table
from embridge.demo.encoder import EncoderSettings
from embridge.demo.hosts import Host, two_hosts
from embridge.demo.prompt import Prompt
from embridge.demo.scheduler import EncoderLink, Item, Scheduler
from embridge.demo.settings import DemoSettings
from embridge.demo.vision import Grid
from embridge.workers.keys import allow_line, new_key_pair, write_key_file

QUESTIONS = (
    "Describe this picture in one sentence.",
    "What is in the foreground?",
    "Which colours are there most of?",
    "Is there text in it, and what does it say?",
)
JOIN_S = 10.0


def run(settings: DemoSettings, console: Console, *, as_json: bool = False) -> int:
    """Run it; 0 when every request arrived with every byte right, else 1. Everything is stopped when it returns.

    With `as_json` what became of each request goes to standard output at the end, as one JSON document.

    Raises:
        FileNotFoundError: there are no photographs.
        ValueError: one of them can't be cut.
        DemoError: a process of the demo ended, or nothing moved for `stall_s`.
        LaunchError: a node did not start.
    """
    items = _items(settings)
    lines = [item.line for item in items]
    started_ns = time.monotonic_ns()
    with ExitStack() as stack:
        stack.enter_context(_termination_unwinds())
        scheduler = _start(stack, settings, console)
        moving_ns = time.monotonic_ns()
        with Display(console, lines, plain=settings.plain or not console.is_terminal) as display:
            scheduler.run(items, display)
        moving_s = (time.monotonic_ns() - moving_ns) / 1e9
        _show(lines, console)
    _summarise(lines, console, moving_s=moving_s, whole_s=(time.monotonic_ns() - started_ns) / 1e9)
    if as_json:
        print(json.dumps([_told(line) for line in lines], indent=2))
    return 0 if all(line.ok for line in lines) else 1


def _told(line: Line) -> dict[str, Any]:
    return {
        "photograph": line.photograph.name,
        "tokens": line.tokens,
        "bytes": line.size_bytes,
        "streamed": line.streamed,
        "rounds": line.rounds,
        "path": [phase.name for phase in line.path],
        "latency_ms": line.latency_ms,
        "ok": line.ok,
        "problem": line.problem,
    }


def _items(settings: DemoSettings) -> list[Item]:
    chosen = photographs.mixture(photographs.find(settings.images), settings.requests, seed=settings.seed)
    items = []
    for index, photograph in enumerate(chosen):
        grid = Grid.of(photograph.height, photograph.width)
        prompt = Prompt(grid=grid, text=QUESTIONS[index % len(QUESTIONS)])
        size_bytes = prompt.num_tokens * settings.geometry().token_bytes
        line = Line(
            number=index + 1,
            photograph=photograph,
            tokens=prompt.num_tokens,
            size_bytes=size_bytes,
            streamed=index % 3 != 2,  # both ways, side by side
        )
        items.append(Item(line=line, prompt=prompt))
    return items


def _start(stack: ExitStack, settings: DemoSettings, console: Console) -> Scheduler:
    """Start both nodes and the encoder; `stack` stops them in the opposite order."""
    run_dir = settings.run_dir or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="embridge-demo-")))
    hosts = (
        dict(zip(("encode", "language"), stack.enter_context(two_hosts()), strict=True)) if settings.two_hosts else {}
    )
    keys = stack.enter_context(tempfile.TemporaryDirectory(prefix="embridge-keys-"))
    places = _places(hosts, Path(keys))
    encode_node = stack.enter_context(_launch(settings, "encode", run_dir, hosts, places))
    console.print(f"encode node   {encode_node.bootstrap_addr}  pid {encode_node.pid}", highlight=False)
    # Its imports take as long as the other node's start: they run side by side.
    link = stack.enter_context(_encoder_process(settings, encode_node.run_dir))
    language_node = stack.enter_context(_launch(settings, "language", run_dir, hosts, places))
    console.print(f"language node {language_node.bootstrap_addr}  pid {language_node.pid}", highlight=False)
    client = stack.enter_context(attach(language_node.run_dir))
    return Scheduler(client=client, link=link, encode_addr=encode_node.bootstrap_addr, settings=settings)


def _places(hosts: dict[str, Host], folder: Path) -> dict[str, dict[str, Any]]:
    """Where each node is.

    On one host there is nothing to say. On two hosts it is the node's address and, because control messages leave the
    host, its keys.
    """
    allow_file, lines = folder / "nodes.allow", []
    for role, host in hosts.items():
        pair = new_key_pair()
        write_key_file(folder / f"{role}.key", pair)
        lines.append(allow_line(host.address, pair.public, role))
    allow_file.write_text("\n".join(lines) + "\n")
    return {
        role: {"host": host.address, "key_file": folder / f"{role}.key", "allow_file": allow_file}
        for role, host in hosts.items()
    }


def _launch(
    settings: DemoSettings, role: str, run_dir: Path, hosts: dict[str, Host], places: dict[str, dict[str, Any]]
) -> Node:
    config = _node_config(settings, role, run_dir, **places.get(role, {}))
    return launch(config, within=hosts[role].within if role in hosts else ())


def _node_config(settings: DemoSettings, role: str, run_dir: Path, **place: Any) -> PipelineConfig:
    num_blocks = settings.encode_pool_blocks if role == "encode" else settings.pool_blocks
    return PipelineConfig(
        role=role,
        run_dir=run_dir / role,
        **{"host": "127.0.0.1", **place},
        engine=settings.engine,
        verify=settings.verify,
        geometry=settings.geometry(num_blocks),
        default_allocate_tokens=settings.default_tokens,
        log_level="ERROR",  # the first node to stop is missed by the other, which would be the last thing one reads
    )


@contextmanager
def _encoder_process(settings: DemoSettings, run_dir: Path) -> Iterator[EncoderLink]:
    """The encoder, spawned; it ends by itself when its connection is closed, and is killed where it does not."""
    context = multiprocessing.get_context("spawn")
    connection, theirs = context.Pipe()
    child_settings = EncoderSettings(
        run_dir=run_dir,
        hidden_size=settings.hidden_size,
        deepstack_layers=settings.deepstack_layers,
        chunk_tokens=2 * settings.block_size,
        seed=settings.seed,
    )
    process = context.Process(target=encoder.main, args=(theirs, child_settings), name="encoder", daemon=True)
    numbers = (signal.SIGINT, signal.SIGHUP)  # inherited: Ctrl-C must not hit it while it imports, nor a terminal's end
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        process.start()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    theirs.close()
    try:
        yield EncoderLink(connection=connection, process=process)
    finally:
        connection.close()
        process.join(JOIN_S)
        if process.is_alive():
            process.kill()
            process.join()


@contextmanager
def _termination_unwinds() -> Iterator[None]:
    """SIGTERM and SIGHUP end the demo as Ctrl-C does, through every `with`, with exit status 128 + the signal's number.

    SIGCHLD has its effect, whoever ignored it before: else nobody would know how a process of the demo ended.
    """

    def unwind(number: int, _frame: FrameType | None) -> NoReturn:
        for other in handlers:
            signal.signal(other, signal.SIG_DFL if other == signal.SIGCHLD else signal.SIG_IGN)  # it unwinds already
        raise SystemExit(128 + number)

    handlers: dict[int, Any] = {signal.SIGTERM: unwind, signal.SIGCHLD: signal.SIG_DFL}
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # `nohup`
        handlers[signal.SIGHUP] = unwind
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _show(lines: Sequence[Line], console: Console) -> None:
    console.print(summary_table(lines, width=console.width))
    for line in lines:
        if not line.ok:
            console.print(f"#{line.number} {line.photograph.name}: {line.problem or 'not finished'}", soft_wrap=True)


def _summarise(lines: Sequence[Line], console: Console, *, moving_s: float, whole_s: float) -> None:
    good = [line for line in lines if line.ok]
    console.print(
        f"{len(good)} of {len(lines)} requests arrived with every byte right: "
        f"{sum(line.tokens for line in good)} tokens, {sum(line.megabytes for line in good):.0f} MB "
        f"in {moving_s:.1f} s, encoding included ({whole_s:.1f} s with start and stop); "
        f"{sum(line.rounds > 1 for line in good)} took more than one round.",
        highlight=False,
        soft_wrap=True,
    )
