"""What a node knows of an engine without running it: its properties, and what two nodes tell each other of it at a
registration.

The roles ask an engine these questions, and never which one it is. `transfer/engines/` has the engines themselves.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar


class EngineKind(ABC):
    """One way for rows to travel. It has no state, and is made once, when its module is imported."""

    name: ClassVar[str]
    """As the setting `engine` and the messages between nodes have it: 1 to 16 characters of a-z, 0-9, `_` and `-`."""
    number: ClassVar[int]
    """As the peer table has it, at least 1; no other engine has this number."""
    title: ClassVar[str]
    """As texts for people have it."""
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

    @abstractmethod
    def offer(self, run_socket: str) -> str:
        """What a language node, whose run socket this is, tells of the engine when it registers: 128 characters at
        most.
        """

    @abstractmethod
    def why_refused(self, offer: str, ours: str, theirs: str) -> str:
        """Why an encode node on the host `ours` does not take an offer from the host `theirs`; empty if it takes it.

        The offer is whatever another node sent, 128 characters at most: nothing else is known of it.
        """
