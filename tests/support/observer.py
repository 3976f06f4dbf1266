"""A process that watches every status word of some nodes as fast as it can, and reports what must never happen (P5)."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from embridge.allocator.status import TERMINAL, split
from support.opening import open_control


class Sampler:
    """Looks at all status words of one node at once.

    They are copied in pieces of whole, aligned words, so none is torn.
    """

    def __init__(self, run_dir: Path) -> None:
        control = open_control(run_dir)
        self._name = run_dir.name
        self._words = np.frombuffer(control.mapping, np.uint64, control.limits.num_slots, control.layout.words)
        self._seen = np.zeros(len(self._words), np.uint64)
        self.looks = 0
        self.changes = 0

    def look(self) -> list[str]:
        """What went wrong since the last look, in words."""
        words, before = self._words.copy(), self._seen
        self._seen = words
        self.looks += len(words)
        changed = np.flatnonzero(words != before)
        if not len(changed):
            return []
        self.changes += len(changed)
        wrong = []
        for slot in changed.tolist():
            was, now = split(int(before[slot])), split(int(words[slot]))
            if words[slot] < before[slot]:
                wrong.append(f"{self._name} slot {slot}: {was} decreased to {now}")
            if was.epoch == now.epoch and was.phase >= TERMINAL:
                wrong.append(f"{self._name} slot {slot}: {was} was the end, then {now}")
        return wrong


def watch(state: SimpleNamespace, run_dirs: list[Path]) -> None:
    """Begin to look, in a thread of this process, until `report`."""
    os.nice(19)  # what it takes is what others leave
    state.violations, state.stop = [], False
    state.samplers = [Sampler(run_dir) for run_dir in run_dirs]
    state.thread = threading.Thread(target=_look, args=(state,))
    state.thread.start()


def _look(state: SimpleNamespace) -> None:
    while not state.stop:
        for sampler in state.samplers:
            state.violations += sampler.look()


def report(state: SimpleNamespace) -> tuple[list[str], int, int]:
    """Stop looking. Returns (what was wrong, how often it looked, how many changes it saw)."""
    state.stop = True
    state.thread.join()
    samplers, state.samplers = state.samplers, []
    return state.violations, sum(s.looks for s in samplers), sum(s.changes for s in samplers)
