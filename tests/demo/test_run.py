"""The demo from the command line, with real nodes: every byte right, and nothing left behind when it is interrupted."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.commands import started

from embridge.demo import hosts
from embridge.workers.transfer.engines import mooncake

pytestmark = pytest.mark.process

NO_TWO_HOSTS = mooncake.why_unavailable() or hosts.why_impossible()
DEMO = ("demo", "--plain", "--hidden", "64")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for index, (height, width) in enumerate([(600, 900), (200, 300), (120, 400)]):
        pixels = np.random.default_rng(index).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


def unless(why: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(bool(why), reason=why or "it is possible")


def test_an_image_that_cannot_be_read_is_named_and_the_others_arrive(images: Path, tmp_path: Path) -> None:
    """P21: its header is whole, its rows are not; the run goes on, and ends with what was wrong."""
    broken = images / "broken.png"
    broken.write_bytes((images / "0.png").read_bytes()[:5000])
    with started([*DEMO, "--images", str(images), "--requests", "4"], tmp_path) as run:
        status, printed = run.end(100)
    assert status == 1, run.errors()
    said = " ".join((printed + run.errors()).split())
    assert "image broken.png cannot be read: " in said, said
    assert "encoder process" not in said
    assert said.count("cannot be read") <= 2


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(
            ("--deepstack", "2"), id="one host", marks=unless("" if NO_TWO_HOSTS else "two hosts show it, too")
        ),
        pytest.param(("--deepstack", "2", "--two-hosts"), id="two hosts", marks=unless(NO_TWO_HOSTS)),
    ],
)
def test_every_byte_of_every_photograph_arrives_through_pools_smaller_than_it(
    images: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    pools = ("--block-size", "32", "--pool-blocks", "6", "--encode-pool-blocks", "3", "--default-tokens", "64")
    with started([*DEMO, "--images", str(images), "--requests", "5", *options, *pools], tmp_path) as run:
        status, printed = run.end(100)
    assert status == 0, printed + run.errors()
    assert len(re.findall("bytes ok", printed)) == 5
    assert "5 of 5 requests arrived with every byte right" in printed
    assert "WaitingForInput → Transferring → Success" in printed


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (signal.SIGINT, ["embridge: interrupted; everything it had started was stopped"]),
        pytest.param(signal.SIGHUP, [], marks=pytest.mark.storm),  # its terminal is gone
    ],
)
def test_an_interrupt_stops_everything_and_leaves_nothing(
    images: Path, own_dir: Path, tmp_path: Path, number: signal.Signals, says: list[str]
) -> None:
    """P9: no process, no folder of sockets or keys."""
    words, environment = [*DEMO, "--images", str(images), "--requests", "500"], {"TMPDIR": str(own_dir)}
    with started(words, tmp_path, environment=environment) as run:
        pids = []
        for text in run.output:
            pids += re.findall(r"node .* pid (\d+)", text)
            if "bytes ok" in text:
                break
        assert list(own_dir.iterdir())
        os.killpg(run.pid, number)  # as a terminal does: to the encoder, too
        status, _ = run.end(100)
    assert status == 128 + number
    assert run.errors().splitlines() == says
    assert list(own_dir.iterdir()) == []
    assert len(pids) == 2
    assert not [pid for pid in pids if Path("/proc", pid).exists()]
