"""An engine's client of a node: launches the node, if it is to, and joins it again when it has come back."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from typing import Final

from embridge import Client, Node, PipelineConfig, attach, launch
from embridge.integrations.engine_settings import EngineSettings
from embridge.workers.timing import NS

log = logging.getLogger(__name__)

AGAIN_S: Final = 0.5
LONGEST_S: Final = 30.0  # between two launches of a node that does not stay
STEADY_S: Final = 60.0  # a node that lived for so long is launched again at once


class EngineNodes:
    """The nodes of one engine, one of a role. One thread at a time calls it."""

    def __init__(self, settings: EngineSettings, engine: str, *, is_both: bool) -> None:
        """`engine` tells the engines of a host apart; `is_both`: it has a node of each role."""
        self._settings, self._engine, self._is_both = settings, engine, is_both
        self._members: list[Membership] = []

    def join(self, role: str, *, launches: bool) -> Membership:
        """Join the node of a role; launch it first, if the settings say so, and it is this process that `launches`.

        Raises as `Membership`.
        """
        run_dir = self._settings.directory(role, self._engine, is_both=self._is_both)
        self._members.append(Membership(run_dir, self._settings.config(role, run_dir) if launches else None))
        return self._members[-1]

    def close(self) -> None:
        """Leave the nodes, the latest first, and stop those that were launched here. Again: no effect."""
        while self._members:
            self._members.pop().close()


class Membership:
    """One thread at a time calls it. A node that it has launched ends with it, and with this process."""

    def __init__(self, run_dir: Path, config: PipelineConfig | None = None) -> None:
        """Join the node in `run_dir`; with `config`, launch it there first. What a launched node puts there goes with
        it, also when this process is killed; the folder too, if nothing else is in it.

        Raises:
            AttachError: no node answers there, and none was to be launched.
            LaunchError, ConfigError: as `launch`.
        """
        self.run_dir = run_dir
        self.clock = time.monotonic_ns
        """Monotonic nanoseconds."""
        self._config = config
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._pause_s = 0.0
        self._launched_ns = self.clock()
        self._node: Node | None = launch(config, keeps_run_dir=False) if config is not None else None
        try:
            self._client = attach(run_dir)
        except BaseException:
            if self._node is not None:
                self._node.stop()
            raise

    def look(self) -> Client | None:
        """The client; None while its node is gone. Another one afterwards: what the last one had is gone, too. It
        raises nothing.
        """
        if self._thread is None:
            if not self._client.node_gone:
                return self._client
            thread = threading.Thread(target=self._join_again, name="embridge-join", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # there are too many now
                log.debug("the node in %s is not joined: %s", self.run_dir, str(error))
                return None
            log.warning("the node in %s is gone; it is joined again when it is back", self.run_dir)
            self._thread = thread
        if self._thread.is_alive():
            return None
        self._thread = None
        return self._client

    def _join_again(self) -> None:
        self._client.close()
        said = ""
        while not self._stop.is_set():
            try:
                if self._config is not None and (self._node is None or self._node.wait(0) is not None):
                    if self._node is not None:
                        self._node.stop()  # it has ended; what this process had of it is closed
                        self._node = None
                    if self._stop.wait(self._next_pause_s()):
                        return
                    self._launched_ns = self.clock()
                    self._node = launch(self._config, keeps_run_dir=False)
                self._client = attach(self.run_dir)
                log.warning("the node in %s is joined again", self.run_dir)
                return
            except Exception as error:  # whatever it is: the engine goes on without its node, and this tries again
                if str(error) != said:
                    said = str(error)
                    log.warning("the node in %s is not joined: %s", self.run_dir, said)
            self._stop.wait(AGAIN_S)

    def _next_pause_s(self) -> float:
        """How long the node stays down, in seconds: twice as long as before where it did not stay up."""
        if self.clock() - self._launched_ns >= STEADY_S * NS:
            self._pause_s = 0.0
        else:
            self._pause_s = min(LONGEST_S, max(AGAIN_S, 2 * self._pause_s))
        if self._pause_s > AGAIN_S:
            log.info("the node in %s is launched again in %g s", self.run_dir, self._pause_s)
        return self._pause_s

    def close(self) -> None:
        """Leave the node, and stop it if it was launched here."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._client.close()
        if self._node is not None:
            self._node.stop()
