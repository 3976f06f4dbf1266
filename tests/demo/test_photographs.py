"""Photographs come from what is installed or from the user's folder, and a run can be repeated."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from embridge.demo import photographs


def save(path: Path, width: int, height: int) -> None:
    Image.fromarray(np.full((height, width, 3), 80, dtype=np.uint8)).save(path)


def test_the_shipped_photographs_are_all_there() -> None:
    found = photographs.find()
    assert [photograph.path.name for photograph in found] == list(photographs.SHIPPED)
    astronaut = found[0]
    assert (astronaut.height, astronaut.width) == (512, 512)
    pixels = astronaut.load(height=56, width=84)
    assert pixels.shape == (56, 84, 3)
    assert pixels.std() > 10


def test_finding_them_does_not_import_scikit_image() -> None:
    script = "import sys, embridge.demo.photographs as p; p.find(); print('scipy' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", script], check=True, timeout=100, capture_output=True, text=True)
    assert run.stdout.split() == ["False"]


def test_a_folder_is_read_by_name_and_what_is_no_image_is_passed_over(tmp_path: Path) -> None:
    save(tmp_path / "b.png", 30, 20)
    save(tmp_path / "a.jpg", 40, 50)
    (tmp_path / "c.png").write_bytes(b"not an image")
    (tmp_path / "notes.txt").write_text("nor this")
    found = photographs.find(tmp_path)
    assert [(item.name, item.width, item.height) for item in found] == [("a", 40, 50), ("b", 30, 20)]


def test_an_empty_or_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        photographs.find(tmp_path)
    with pytest.raises(FileNotFoundError, match="not a folder"):
        photographs.find(tmp_path / "absent")


def test_a_mixture_uses_every_photograph_and_repeats_with_its_seed(tmp_path: Path) -> None:
    for name in "abc":
        save(tmp_path / f"{name}.png", 100, 80)
    found = photographs.find(tmp_path)
    chosen = photographs.mixture(found, 7, seed=4)
    assert len(chosen) == 7
    assert {photograph.name for photograph in chosen} == {"a", "b", "c"}
    assert len({photograph.width for photograph in chosen}) > 2
    assert chosen == photographs.mixture(found, 7, seed=4)
    assert chosen != photographs.mixture(found, 7, seed=5)
