"""What engines' packages offer to those that extend them, for tests where the packages are not installed.

Each stand-in has the names and signatures of the real one and nothing else; `make engines` runs the same tests over the
real packages.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from abc import ABC, abstractmethod
from pathlib import Path
from types import ModuleType
from typing import Any

DYNAMO = "dynamo.common.multimodal.embedding_transfer"
PACKAGES = ("dynamo", "dynamo.common", "dynamo.common.multimodal", "dynamo.common.utils")


class TransferRequest:
    """Dynamo's, which is a pydantic model."""

    def __init__(self, *, embeddings_shape: list[int], embedding_dtype_str: str, serialized_request: Any) -> None:
        self.embeddings_shape = embeddings_shape
        self.embedding_dtype_str = embedding_dtype_str
        self.serialized_request = serialized_request


class AbstractEmbeddingSender(ABC):
    """Dynamo's."""

    @abstractmethod
    async def send_embeddings(self, embeddings: Any, stage_embeddings: bool = False) -> Any: ...


class AbstractEmbeddingReceiver(ABC):
    """Dynamo's."""

    @abstractmethod
    async def receive_embeddings(self, request: Any) -> Any: ...

    @abstractmethod
    def release_tensor(self, tensor_id: int) -> None: ...


def stand_in_for_dynamo() -> None:
    """Have Dynamo's module importable: the real one, where it is installed."""
    if DYNAMO in sys.modules:
        return
    real = importlib.util.find_spec("dynamo")
    places = list(real.submodule_search_locations or ()) if real is not None else []
    for name in PACKAGES:  # without what theirs import, which wants Dynamo's runtime
        package: Any = ModuleType(name)
        package.__path__ = [str(Path(place, *name.split(".")[1:])) for place in places]
        sys.modules[name] = package
    if real is not None:
        runtime: Any = ModuleType("dynamo.common.utils.runtime")
        runtime.run_async = None  # of its other carriers
        sys.modules[runtime.__name__] = runtime
        importlib.import_module(DYNAMO)
        return
    module: Any = ModuleType(DYNAMO)
    sys.modules[DYNAMO] = module
    module.TransferRequest = TransferRequest
    module.AbstractEmbeddingSender = AbstractEmbeddingSender
    module.AbstractEmbeddingReceiver = AbstractEmbeddingReceiver
