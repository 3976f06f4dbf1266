"""Variables of the environment that look like settings and are none: each is named once, with what was meant."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Iterable, Mapping
from typing import Final

log = logging.getLogger(__name__)

PREFIX: Final = "EMBRIDGE_"
OF_ENGINES: Final = frozenset({"EMBRIDGE_SGLANG"})
"""Read by integrations, in processes that may launch a node, too."""
_NEAR: Final = 0.6  # of difflib's ratio: a letter more or less, two that are swapped, a word that is missing
_OF_KUBERNETES: Final = re.compile(r"\w*_(SERVICE_(HOST|PORT(_\w+)?)|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)=.*", re.ASCII)
_LINK: Final = re.compile(r"\w*_PORT=(tcp|udp|sctp)://.*", re.ASCII)
"""Both: what Kubernetes puts into every container, for each service (here: for one that is named `embridge-...`)."""

_told: set[str] = set()


def warn(variables: Mapping[str, str], known: Iterable[str]) -> None:
    """Log a warning for each variable that begins as settings do and is none of the `known`; once a process."""
    names = set(known)
    for variable in sorted(variables.keys() - names - OF_ENGINES - _told):
        if not variable.startswith(PREFIX):
            continue
        near = nearest(variable, names)
        given = f"{variable}={variables[variable]}"
        if _LINK.fullmatch(given) or _OF_KUBERNETES.fullmatch(given):
            continue
        _told.add(variable)
        meant = f"; is {near} meant?" if near else "; docs/settings.md lists those that there are"
        log.warning("%s: no setting has this variable, so it has no effect%s", variable, meant)


def nearest(variable: str, known: Iterable[str]) -> str | None:
    """The known variable whose name is nearest to this one; None where none is near."""
    found = difflib.get_close_matches(
        variable.removeprefix(PREFIX), [name.removeprefix(PREFIX) for name in known], 1, _NEAR
    )
    return f"{PREFIX}{found[0]}" if found else None
