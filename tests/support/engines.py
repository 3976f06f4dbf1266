"""What engines' packages offer to those that extend them, for tests where the packages are not installed.

Each stand-in has the names and signatures of the real one and nothing else; `make engines` runs the same tests over the
real packages.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from abc import ABC, abstractmethod
from enum import StrEnum
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

# ---- Dynamo

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


# ---- SGLang

SGLANG_BASE = "sglang.srt.disaggregation.base"


class KVPoll:
    """SGLang's numbers."""

    Failed = 0
    Bootstrapping = 1
    WaitingForInput = 2
    Transferring = 3
    Success = 4


class KVTransferMetric(NamedTuple):
    """SGLang's, which is a dataclass."""

    transfer_latency_s: float | None = None
    alloc_latency_s: float | None = None
    transfer_total_bytes: int | None = None


class KVTransferDestination(StrEnum):
    """SGLang's."""

    DEVICE = "device"
    HOST = "host"


class BaseKVManager(ABC):
    """SGLang's."""

    @abstractmethod
    def __init__(
        self, args: Any, disaggregation_mode: Any, server_args: Any, is_mla_backend: bool | None = False
    ) -> None: ...

    @abstractmethod
    def register_to_bootstrap(self) -> Any: ...


class BaseKVSender(ABC):
    """SGLang's."""

    @abstractmethod
    def __init__(
        self, mgr: Any, bootstrap_addr: str, bootstrap_room: int, req_has_disagg_prefill_dp_rank: bool = False
    ) -> None: ...

    @abstractmethod
    def init(self, num_kv_indices: int, aux_index: int | None = None) -> Any: ...

    @abstractmethod
    def send(self, kv_indices: Any, state_indices: Any = None, num_kv_tokens: int | None = None) -> Any: ...

    @abstractmethod
    def get_transfer_metric(self) -> Any: ...

    @abstractmethod
    def poll(self) -> Any: ...

    @abstractmethod
    def failure_exception(self) -> Any: ...


class BaseKVReceiver(ABC):
    """SGLang's."""

    @abstractmethod
    def __init__(self, mgr: Any, bootstrap_addr: str, bootstrap_room: int | None = None) -> None: ...

    @abstractmethod
    def init(self, prefill_dp_rank: int) -> Any: ...

    @abstractmethod
    def send_metadata(
        self,
        kv_indices: Any,
        aux_index: int | None = None,
        state_indices: Any = None,
        decode_prefix_len: int | None = None,
        destination: Any = KVTransferDestination.DEVICE,
    ) -> Any: ...

    @abstractmethod
    def poll(self) -> Any: ...

    @abstractmethod
    def failure_exception(self) -> Any: ...


class BaseKVBootstrapServer(ABC):
    """SGLang's."""

    @abstractmethod
    def __init__(self, host: str, port: int) -> None: ...


STANDS_IN = (BaseKVManager, BaseKVSender, BaseKVReceiver, BaseKVBootstrapServer)


def has_sglang() -> bool:
    """Whether SGLang itself is installed, with what its modules import."""
    return importlib.util.find_spec("sglang") is not None


def define_operators() -> None:
    """Those which torchvision's build for CUDA wants when it is imported beside a torch without."""
    import torch

    library: Any = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _kept.append(library)


_kept: list[Any] = []


def stand_in_for_sglang() -> None:
    """Have SGLang's base classes importable: the real ones, where it is installed."""
    if SGLANG_BASE in sys.modules:
        return
    if has_sglang():
        define_operators()
        importlib.import_module(SGLANG_BASE)
        return
    parts = SGLANG_BASE.split(".")
    for count in range(1, len(parts) + 1):
        package: Any = ModuleType(".".join(parts[:count]))
        package.__path__ = []
        sys.modules[package.__name__] = package
    conn: Any = ModuleType(f"{SGLANG_BASE}.conn")
    sys.modules[conn.__name__] = conn
    for it in (*STANDS_IN, KVPoll, KVTransferMetric, KVTransferDestination):
        setattr(package, it.__name__, it)
        setattr(conn, it.__name__, it)
