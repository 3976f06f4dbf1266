"""embridge as an encoder-cache connector of vLLM: one instance's encoder outputs for others.

vLLM finds it by the entry point `vllm.general_plugins`, which calls `register`; or by `"ec_connector_module_path":
"embridge.integrations.vllm"`. docs/integrations/vllm.md has the rest. vLLM is imported when it asks for the connector.
"""

from __future__ import annotations

import contextlib
from importlib import import_module
from typing import Any, Final

NAME: Final = "EmbridgeConnector"
MODULE: Final = "embridge.integrations.vllm.connector"


def register() -> None:
    """Tell vLLM of the connector, once a process; again: no effect."""
    factory = import_module("vllm.distributed.ec_transfer.ec_connector.factory").ECConnectorFactory
    with contextlib.suppress(ValueError):  # it is registered
        factory.register_connector(NAME, MODULE, NAME)


def __getattr__(name: str) -> Any:
    if name == NAME:
        return getattr(import_module(MODULE), NAME)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
