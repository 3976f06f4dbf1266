"""The examples of the tutorial and the guides run, on two nodes that the tutorial's own commands launch.

Programs run as a reader would start them. The blocks of a guide run one after the other, in one module; what a block
takes from its reader (a model, a prefill, a room) is given here, and what it promises is looked at behind it.
"""

from __future__ import annotations

import asyncio
import collections
import json
import os
import re
import runpy
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from support.agents import FORKED
from support.commands import started
from support.pages import COMMANDS, PYTHON, ROOT, blocks
from support.ports import port_to_keep
from support.waiting import wait_until

from embridge import Client, EmbeddingSender, NotPublished, Phase, RowsAt, attach, receive
from embridge.pipeline.cli import main

pytestmark = pytest.mark.process

TUTORIAL = ROOT / "docs" / "tutorial.md"
IN_FLIGHT = ROOT / "docs" / "in-flight.md"
TYPED = [line for block, line in COMMANDS if block.page == TUTORIAL]
PROGRAMS = [block for block in PYTHON if block.page == TUTORIAL]
MORE = {"encode": ["--shelf-bytes", "1048576"], "language": ["--host-buffer-bytes", "67108864"]}
"""What the guides need, and the tutorial does not."""
HIDDEN = 1024

Names = dict[str, Any]


class Place(SimpleNamespace):
    """The two nodes, as their commands have launched them."""

    folder: Path
    encode_addr: str

    def typed(self, beginning: str) -> list[list[str]]:
        """The tutorial's commands of this kind, in words; with this place's port."""
        lines = [line.replace("4000", self.encode_addr.rpartition(":")[2]) for line in TYPED]
        return [shlex.split(line) for line in lines if line.startswith(beginning)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with launched(tmp_path_factory.mktemp("t"), MORE) as at:
        yield at


@contextmanager
def launched(folder: Path, more: dict[str, list[str]]) -> Iterator[Place]:
    """The tutorial's nodes, with more options for each role."""
    at = Place(folder=folder, encode_addr=f"tcp://127.0.0.1:{port_to_keep()}")
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setenv("XDG_RUNTIME_DIR", str(folder))
        for words in at.typed("embridge launch"):
            role = words[words.index("--role") + 1]
            (folder / role).mkdir()
            command = stack.enter_context(started([*words[1:], *more[role]], folder / role))
            told = command.output.readline()
            assert told.startswith(f"READY role={role} "), command.errors()
        yield at
        for words in at.typed("embridge drain"):
            ended = CliRunner().invoke(main, words[1:])
            assert ended.exit_code == 0, ended.output


@pytest.fixture(scope="module")
def rooms() -> Callable[[], int]:
    return partial(next, iter(range(1000, 2000)))


def live(path: Path, words: list[str], environment: dict[str, str], output: Any) -> None:
    """A program of the tutorial, in a process of its own."""
    os.environ.update(environment)
    os.dup2(output.fileno(), 1)
    sys.argv[:] = words
    runpy.run_path(str(path), run_name="__main__")
    sys.stdout.flush()


@contextmanager
def running(place: Place, words: list[str]) -> Iterator[Callable[[], str]]:
    """A program that runs for the length of a block at most. Gives what waits for its end: what it has printed."""
    ours, theirs = FORKED.Pipe(duplex=False)
    environment = {"XDG_RUNTIME_DIR": str(place.folder)}
    process = FORKED.Process(target=live, args=(place.folder / words[0], words, environment, theirs))
    process.start()
    theirs.close()

    def end() -> str:
        said = output.read()
        process.join(20.0)
        assert process.exitcode == 0, said
        return said

    try:
        with ours, open(ours.fileno(), closefd=False) as output:
            yield end
    finally:
        process.kill()
        process.join()
        process.close()


def printed(text: str) -> str:
    """A pattern of what a block shows: as many rounds as there are, and spaces as they come."""
    shown = re.escape(text.strip()).replace(r"6\ rounds", r"\d+\ rounds")
    return re.sub(r"\\\s", r"\\s+", shown) + r"\s*"


def test_the_tutorial_runs_as_it_is_told(place: Place) -> None:
    names = re.findall(r"Save this as `(\w+\.py)`", TUTORIAL.read_text())
    for name, program in zip(names, PROGRAMS, strict=True):
        (place.folder / name).write_text(program.text)
    texts = [block.text for block in blocks(TUTORIAL) if block.language == "text"]
    shown = [text for text in texts if not text.startswith("READY")]
    encoder, scheduler, again = place.typed("python")
    with running(place, encoder[1:]) as encoded, running(place, scheduler[1:]) as received:
        outputs = [encoded(), received()]
    with running(place, again[1:]) as received:
        outputs.append(received())
    for text, output in zip(shown, outputs, strict=True):
        assert re.fullmatch(printed(text), output), output


def test_the_tutorial_s_looks_at_a_node_show_something(place: Place) -> None:
    for words in (*place.typed("embridge trace"), *place.typed("embridge status")):
        answer = CliRunner().invoke(main, words[1:])
        assert answer.exit_code == 0, answer.output
        assert answer.output.strip()
    assert CliRunner().invoke(main, [*place.typed("embridge top")[0][1:], "--once"]).exit_code == 0


def status(role: str) -> Any:
    return json.loads(CliRunner().invoke(main, ["status", "--role", role, "--json"]).output)


@pytest.mark.parametrize("is_short", [False, True], ids=["", "memory is short"])
def test_many_requests_pass_at_once_as_it_is_told(place: Place, tmp_path: Path, is_short: bool) -> None:
    with ExitStack() as stack:
        if is_short:
            more = {"encode": ["--unsent-max-bytes", "2000000"], "language": []}
            place = stack.enter_context(launched(tmp_path, more))
        names = re.findall(r"Save this as `(\w+\.py)`", IN_FLIGHT.read_text())
        for name, block in zip(names, [block for block in PYTHON if block.page == IN_FLIGHT], strict=True):
            (place.folder / name).write_text(block.text)
        typed = [line for block, line in COMMANDS if block.page == IN_FLIGHT]
        port = place.encode_addr.rpartition(":")[2]
        encoder, scheduler = (shlex.split(line.replace("4000", port))[1:] for line in typed)
        with running(place, encoder) as encoded:
            if is_short:  # the scheduler comes when nothing more fits
                wait_until(lambda: status("encode")["unsent_bytes"] > 1_400_000)
            with running(place, scheduler) as received:
                outputs = [encoded(), received()]
    shown = [block.text.strip() for block in blocks(IN_FLIGHT) if block.language == "text"]
    assert outputs[1].strip() == shown[1]
    assert (outputs[0].strip() == shown[0]) is not is_short
    assert outputs[0].splitlines()[0] == shown[0].splitlines()[0]


class Guide:
    """The blocks of a page, to be run in their order, in one module."""

    def __init__(self, page: str, place: Place, rooms: Callable[[], int]) -> None:
        self.blocks = iter([block for block in PYTHON if block.page == ROOT / "docs" / page])
        self.place, self.new_room = place, rooms
        self.names: Names = {"__name__": "guide", "encode_addr": place.encode_addr, "stopping": threading.Event()}
        self.rows = torch.randn(300, HIDDEN).bfloat16()
        self.ids = torch.arange(300, dtype=torch.int32)
        self.positions = self.ids[:, None].repeat(1, 3)

    def run(self, **names: Any) -> Names:
        """The next block."""
        self.names |= names
        block = next(self.blocks)
        code = "\n" * block.line + block.text
        exec(compile(code, str(block), "exec"), self.names)
        return self.names

    def is_over(self) -> bool:
        return next(self.blocks, None) is None

    def give(self, encoder: Client, room: int) -> EmbeddingSender:
        """The rows of a room, all of them."""
        sender = encoder.sender(room, len(self.rows))
        sender.write(0, self.rows, self.ids, self.positions)
        return sender

    def came(self, scheduler: Client, room: int) -> None:
        """The rows of that room have come, as they are."""
        with receive(scheduler, self.place.encode_addr, room) as arrival:
            assert arrival.wait(20.0)
            assert torch.equal(arrival.result().input_embeddings, self.rows)


def test_the_guide_for_encoders_runs(place: Place, rooms: Callable[[], int]) -> None:
    guide = Guide("encoder.md", place, rooms)
    buffers: list[torch.Tensor] = []
    with attach(role="language") as scheduler:
        names = guide.run(model=lambda image: (guide.rows, guide.ids, guide.positions))
        client: Client = names["client"]
        with client:
            names["encode"](room := rooms(), None)
            guide.came(scheduler, room)
            given = {"embeddings": guide.rows, "ids": guide.ids, "positions": guide.positions, "n": 100, "image": None}
            guide.run(room=rooms(), total_tokens=300, **given)
            guide.came(scheduler, names["room"])
            guide.run()
            sender = client.sender(rooms(), 300)
            assert names["write_when_there_is_room"](sender, 0, guide.rows, guide.ids, guide.positions)
            guide.came(scheduler, sender.room)
            guide.run(sender=client.sender(rooms(), 300), layer=lambda image, out: fill(guide, out))
            guide.came(scheduler, names["sender"].room)
            guide.run(sender=client.sender(rooms(), 300), buffers=buffers)
            guide.came(scheduler, names["sender"].room)
            wait_until(lambda: buffers, what="the rows that were lent are back")
            assert buffers == [guide.rows]
            guide.run()
            asyncio.run(names["given"](names["sender"]))
            guide.run()  # what starts processes stands below `if __name__ == "__main__":`
            assert guide.is_over()


def fill(guide: Guide, out: Any) -> None:
    """A layer that writes where it is told to."""
    span = slice(out.first, out.end)
    out.input_embeddings.copy_(guide.rows[span])
    out.fill_ids.copy_(guide.ids[span])
    out.mrope_positions.copy_(guide.positions[span])


class Engine:
    """What a scheduler's guide leaves to its reader: requests that arrive, and a prefill."""

    def __init__(self, guide: Guide, encoder: Client) -> None:
        self._guide, self._encoder = guide, encoder
        self.prefilled: list[int] = []
        self.jobs: list[Any] = []
        self.ends_loops = True

    def arrive(self) -> Any:
        room = self._guide.new_room()
        self._guide.give(self._encoder, room)
        job = SimpleNamespace(room=room, encode_addr=self._guide.place.encode_addr)
        self.jobs.append(job)
        return job

    def take_arrived(self) -> list[Any]:
        taken, self.jobs = self.jobs, []
        return taken

    def prefill(self, job: Any, rows: torch.Tensor) -> None:
        assert torch.equal(rows, self._guide.rows)
        self.prefilled.append(job.room)
        if not self.ends_loops:
            return
        self._guide.names["stopping"].set()
        if "risen" in self._guide.names:
            self._guide.names["risen"].set()

    def refuse(self, job: Any, code: str, reason: str) -> None:
        raise AssertionError(f"{code}: {reason}")

    def serve(self, loop: Callable[[], object]) -> None:
        """One request, which ends the loop."""
        self._guide.names["stopping"].clear()
        job = self.arrive()
        loop()
        assert self.prefilled[-1] == job.room


def test_the_guide_for_schedulers_runs(place: Place, rooms: Callable[[], int]) -> None:
    guide = Guide("scheduler.md", place, rooms)
    with attach(role="encode") as encoder, ExitStack() as stack:
        engine = Engine(guide, encoder)
        names = guide.run(prefill=engine.prefill, refuse=engine.refuse, take_arrived=engine.take_arrived)
        stack.callback(names["client"].close)

        def stepping() -> None:
            wait_until(lambda: names["step"](engine.take_arrived()) or names["stopping"].is_set())

        engine.serve(stepping)
        guide.run()
        engine.serve(guide.run)
        guide.run()
        engine.serve(lambda: asyncio.run(names["serve"]()))

        guide.run()
        room = rooms()
        waiting = collections.deque([names["EmbeddingRequest"](room=room, bootstrap_addr=place.encode_addr)])
        request = waiting[0]
        names["add_what_fits"](waiting)
        guide.give(encoder, room)
        assert not waiting
        wait_until(lambda: names["client"].poll() is None or names["transfer"].pop_transferred()[0] == [request])
        batch, positions = torch.zeros(400, HIDDEN).bfloat16(), torch.zeros(300, 3, dtype=torch.int32)
        guide.run(request=request, batch=batch, first=50, positions=positions)
        assert torch.equal(batch[50:350], guide.rows)
        assert torch.equal(positions, guide.positions)
        request.release()

        chunks: dict[int, torch.Tensor] = {}
        guide.give(encoder, room := rooms())
        guide.run(room=room, prefill_chunk=lambda first, rows: chunks.update({first: rows.clone()}))
        assert torch.equal(torch.cat([chunks[first] for first in sorted(chunks)]), guide.rows)

        guide.run(room=rooms(), first_addr=place.encode_addr, second_addr=place.encode_addr)
        names["client"].close()  # with the request that nobody sends
        guide.run()
        stack.callback(names["client"].close)
        followed: list[int] = []
        guide.run(prefill_rank=lambda rank, room, rows: followed.append(room))
        follower = threading.Thread(target=names["follow_rank_0"], args=(1,))
        stack.callback(follower.join)
        stack.callback(names["stopping"].set)
        names["stopping"].clear()
        engine.ends_loops = False  # the follower's loop ends when it has the request, too
        follower.start()
        job = engine.arrive()
        wait_until(lambda: names["step"](engine.take_arrived()) or job.room in engine.prefilled)
        wait_until(lambda: followed, what="the follower has it, too")
        names["stopping"].set()
        follower.join()
        names["client"].close()

        names["client"] = stack.enter_context(attach(role="language"))
        guide.give(encoder, room := rooms())
        guide.run(room=room, use=lambda rows: followed.append(len(rows)))
        assert followed[-1] == 300
        guide.give(encoder, room := rooms())
        assert asyncio.run(names["received"](room)) is not None
        assert guide.is_over()


def test_the_guide_to_published_items_runs(place: Place, rooms: Callable[[], int]) -> None:
    guide = Guide("items.md", place, rooms)
    used: list[torch.Tensor] = []
    sent: list[RowsAt] = []
    names = guide.run(digest="sha256:9f86", embeddings=guide.rows, use=used.append, encode_and_publish=pytest.fail)
    with names["encoder"], names["reader"]:
        assert torch.equal(used.pop(), guide.rows)
        guide.run(request_id="r1")
        assert torch.equal(used.pop(), guide.rows)
        with pytest.raises(NotPublished):  # a request whose item is nowhere ends the loop of the guide
            wait_until(lambda: names["may_run"]("r2", ["sha256:none"]))
        assert names["cache"].counts().waiting == 0
        guide.run(send_to_worker=sent.append)
        assert torch.equal(names["in_a_worker"](sent[0]), guide.rows)
        guide.run(find_client=lambda: names["reader"], step=1)
        guide.run()
        assert guide.is_over()
        del names["held"], names["fetch"], names["item"]


def test_the_guide_for_gpus_runs_where_there_is_none(place: Place, rooms: Callable[[], int]) -> None:
    guide = Guide("gpu.md", place, rooms)
    names = guide.run()
    with names["client"] as client, attach(role="language") as scheduler:
        guide.run()
        guide.run()
        sender = client.sender(rooms(), 300)
        names["give"](sender, guide.rows, guide.ids, guide.positions)
        on_device = torch.zeros(300, HIDDEN).bfloat16()
        with receive(scheduler, place.encode_addr, sender.room) as arrival:
            assert arrival.wait(20.0)
            names["load"](arrival.request, on_device)
        assert torch.equal(on_device, guide.rows)
        assert guide.is_over()


def test_the_examples_of_errors_and_of_spans_run(place: Place, rooms: Callable[[], int]) -> None:
    guide = Guide("errors.md", place, rooms)
    with attach(role="encode") as encoder, attach(role="language") as scheduler:
        sender = encoder.sender(rooms(), 300)
        failed = SimpleNamespace(pop_transferred=lambda: ([], []))
        given = {"start": 0, "embeddings": guide.rows, "ids": guide.ids, "positions": guide.positions}
        guide.run(sender=sender, transfer=failed, retry_in=time.sleep, **given)
        guide.came(scheduler, sender.room)
        assert sender.poll() <= Phase.Success
        assert guide.is_over()
    spans = Guide("metrics.md", place, rooms)
    spans.run(finished=[], failed=[])
    assert spans.is_over()


ELSEWHERE = {
    "README.md": "tests/test_docs.py runs it as a program",
    "docs/discovery.md": "it needs a discovery server; tests/workers/discovery has one",
    "docs/engines.md": "a sketch; tests/workers/transfer/test_third_engine.py has the whole",
    "docs/integrations/dynamo.md": "`make engines` runs what it names",
    "docs/integrations/sglang.md": "a client of an engine that is served",
    "docs/integrations/vllm.md": "a client of an engine that is served",
}
"""Pages whose blocks do not run here, and why."""


def test_each_page_with_python_runs_here_or_has_a_reason() -> None:
    pages = {block.page.relative_to(ROOT).as_posix() for block in PYTHON}
    guides = {"encoder", "scheduler", "items", "gpu", "errors", "metrics", "tutorial", "in-flight"}
    assert pages == {f"docs/{name}.md" for name in guides} | ELSEWHERE.keys()
