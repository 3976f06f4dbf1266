"""What the options of engines have in common: their types, and from which encode nodes items may come."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, Final

from embridge import Client, ConfigError, EmbridgeError
from embridge.workers.addresses import numeric

ANY_PORT: Final = ":*"
_KINDS: Final[dict[str, tuple[type, ...]]] = {
    "bool": (bool,),
    "int": (int,),
    "str": (str,),
    "float": (int, float),
    "tuple[str, ...]": (list, tuple),
    "Mapping[str, Any]": (dict,),
}


def json_variable(variable: str) -> Any:
    """What a variable of the environment says in JSON, for engines that have no place for our options; None: it is
    empty, or not set. Raises ConfigError: it is no JSON.
    """
    text = os.environ.get(variable, "")
    try:
        return json.loads(text) if text else None
    except ValueError as error:
        raise ConfigError(f"{variable}: {text!r} is no JSON: {error}") from None


def check_names(options: type[Any], given: Mapping[str, Any], source: str) -> None:
    """Refuse names that are none of the fields of `options`. Raises ConfigError, which names `source`."""
    known = {it.name for it in dataclasses.fields(options)}
    if unknown := sorted(given.keys() - known):
        raise ConfigError(f"{source}: {unknown[0]} is none of {', '.join(sorted(known))}")


def check_values(options: Any, source: str, **least: int) -> None:
    """Refuse values of fields that are of another type, or less than what `least` says. Raises ConfigError."""
    for it in dataclasses.fields(options):
        value, kinds = getattr(options, it.name), _KINDS[str(it.type)]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise ConfigError(f"{source}: {it.name}: {value!r} is no {it.type}")
    for name, lowest in least.items():
        if getattr(options, name) < lowest:
            raise ConfigError(f"{source}: {name}: {getattr(options, name)} < {lowest}")


def allowed_nodes(encoders: Sequence[Any], source: str) -> tuple[str, ...]:
    """Encode nodes as they are written, tcp://ip:port or tcp://ip:*, with numeric addresses. Raises ConfigError."""
    try:
        allowed = [numeric(it.replace(ANY_PORT, ":1")) for it in encoders]
    except (AttributeError, ValueError) as error:
        raise ConfigError(f"{source}: encoders: {error}") from None
    ports = [ANY_PORT if it.endswith(ANY_PORT) else "" for it in encoders]
    return tuple(it.removesuffix(":1") + port if port else it for it, port in zip(allowed, ports, strict=True))


def is_listed(address: str, encoders: Sequence[str]) -> bool:
    """Whether a numeric address is among what `allowed_nodes` has given."""
    return address in encoders or address.rpartition(":")[0] + ANY_PORT in encoders


def why_refused(address: str, encoders: Sequence[str], client: Client | None) -> str:
    """Why nothing is fetched from an address; empty if it may be. Where `encoders` is empty, those nodes may be asked
    of which discovery has told the node of `client`.
    """
    try:
        address = numeric(address)
    except ValueError as error:
        return str(error)
    if is_listed(address, encoders):
        return ""
    if not encoders and client is not None:
        try:
            if any(node.bootstrap_addr == address for node in client.encode_nodes()):
                return ""
        except ValueError:
            pass  # it has no discovery
        except EmbridgeError as error:
            return str(error)
    return f"{address} is none of the encode nodes that are allowed (encoders)"


def has_discovery(client: Client) -> bool:
    """Whether discovery tells the node of a client of encode nodes."""
    try:
        client.encode_nodes()
    except ValueError:
        return False
    return True
