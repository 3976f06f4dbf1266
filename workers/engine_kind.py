"""What a node knows of an engine without running it: its properties, and what two nodes tell each other of it.

They tell it at a registration. Roles, configuration and `embridge doctor` ask an engine these questions, and never
which one it is. `transfer/engines/` has the engines themselves.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from embridge.workers.checks import Check


class EngineKind(ABC):
    """One way for rows to travel. It has no state, and is made once, when its module is imported."""

    name: ClassVar[str]
    """As the setting `engine` and the messages between nodes have it: 1 to 16 characters of a-z, 0-9, `_` and `-`."""
    number: ClassVar[int]
    """As the peer table has it, at least 1; no other engine has this number."""
    title: ClassVar[str]
    """As texts for people have it: reasons of failures, `embridge doctor`, and its part of the page of settings."""
    settings_class: ClassVar[type[Any] | None] = None
    """The group of its settings (`allocator/settings.py`), or None.

    With it the node has a table of the engine's name in TOML, the variables `EMBRIDGE_<NAME>_...`, the flags
    `--<name>-...` where a setting has one, and the values in `PipelineConfig.engine_settings`. They go to the transfer
    workers as they are.
    """
    is_local: ClassVar[bool]
    """Whether it reaches peers on this host only.

    Its offer is the path of the run socket then, and an encode node asks there, before it accepts the offer, whether
    the language node listens.
    """
    is_automatic: ClassVar[bool]
    """Whether `engine = auto` offers it where it is available."""
    has_sessions: ClassVar[bool]
    """Whether peers write through an engine that each transfer worker of the language node runs, under the session of
    that engine (R10). An attempt that failed may land late only with such an engine: the end of the session is its
    fence. Without, the death of the writer is (R12).
    """
    writes_to_stderr: ClassVar[bool]
    """Whether its library writes on standard error; that goes to a file of its own then."""

    @abstractmethod
    def why_unavailable(self) -> str:
        """Why this machine cannot run the engine, and what to install; empty if it can. Does not load its library."""

    def check_machine(self, settings: Any) -> Check | None:
        """What `embridge doctor` says of the engine, its name the engine's title; None if there is nothing to say.

        `settings`: those of the environment, None for an engine without. It may take seconds; an exception is shown as
        a check that has failed.
        """
        return None

    @abstractmethod
    def offer(self, run_socket: str) -> str:
        """What a language node tells of the engine when it registers, in at most 128 characters.

        `run_socket` is that node's own.
        """

    @abstractmethod
    def why_refused(self, offer: str, ours: str, theirs: str) -> str:
        """Why an encode node on the host `ours` does not take an offer from the host `theirs`; empty if it takes it.

        The offer is whatever another node sent, 128 characters at most: nothing else is known of it.
        """
