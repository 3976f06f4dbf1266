"""Photographs to send: a folder of the user's, or those that scikit-image ships inside its wheel.

Nothing is downloaded. scikit-image itself is not imported (that would load scipy): only its data folder is looked up.
"""

from __future__ import annotations

import importlib.util
import random
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
# The files in skimage/data that are photographs and not drawings or textures, and that the wheel holds.
SHIPPED = (
    "astronaut.png",
    "coffee.png",
    "chelsea.png",
    "rocket.jpg",
    "hubble_deep_field.jpg",
    "motorcycle_left.png",
    "retina.jpg",
    "camera.png",
    "ihc.png",
    "motorcycle_right.png",
    "moon.png",
    "coins.png",
)
# What a server sees is a mixture: thumbnails, screens, and a few scans that are far longer than the rest.
SCALES = (1.0, 0.5, 2.0, 1.0, 1.5, 3.0)

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Photograph:
    """An image file and the size in pixels at which one request sends it."""

    path: Path
    height: int
    width: int

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ValueError(f"photograph {self.path}: {self.width}x{self.height} pixels < 1x1; scale it by more")

    @property
    def name(self) -> str:
        return self.path.stem

    def load(self, *, height: int, width: int) -> Pixels:
        """The pixels (height, width, 3), resampled bicubically as the Hugging Face processor does."""
        with Image.open(self.path) as image:
            resized = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
            return np.asarray(resized)


def shipped_folder() -> Path:
    """Where scikit-image keeps its images.

    Raises:
        FileNotFoundError: scikit-image is not installed, or its data folder is not there.
    """
    spec = importlib.util.find_spec("skimage")
    folder = Path(spec.origin).parent / "data" if spec is not None and spec.origin is not None else None
    if folder is None or not folder.is_dir():
        raise FileNotFoundError(
            "no photographs: scikit-image is not installed; "
            "run pip install 'embridge[demo]' or name a folder with --images"
        )
    return folder


def find(folder: Path | None = None) -> list[Photograph]:
    """Every readable photograph of `folder` by name, or the shipped ones, each at its own size.

    Raises:
        FileNotFoundError: there is none; the message says where was looked and for what.
    """
    if folder is None:
        source = shipped_folder()
        paths = [source / name for name in SHIPPED if (source / name).is_file()]
    else:
        source = folder
        if not folder.is_dir():
            raise FileNotFoundError(f"no photographs: {folder} is not a folder; name one that holds images")
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    photographs = [photograph for path in paths if (photograph := _probe(path)) is not None]
    if not photographs:
        kinds = " ".join(sorted(SUFFIXES))
        raise FileNotFoundError(f"no photographs: nothing readable in {source}; looked for {kinds}")
    return photographs


def mixture(photographs: Sequence[Photograph], count: int, *, seed: int) -> list[Photograph]:
    """`count` requests: every photograph in turn, each at a size of SCALES, in an order that `seed` decides."""
    chosen: list[Photograph] = []
    for index in range(count):
        photograph = photographs[index % len(photographs)]
        scale = SCALES[(index + index // len(photographs)) % len(SCALES)]
        chosen.append(
            Photograph(
                path=photograph.path,
                height=max(1, round(photograph.height * scale)),
                width=max(1, round(photograph.width * scale)),
            )
        )
    random.Random(seed).shuffle(chosen)
    return chosen


def _probe(path: Path) -> Photograph | None:
    """Read the header only; a file that is not an image is passed over."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                size: tuple[Any, Any] = image.size
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
        return None
    return Photograph(path=path, height=int(size[1]), width=int(size[0]))
