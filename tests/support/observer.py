"""A process that watches every status word of some nodes as fast as it can, and reports what must never happen (P5)."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import SimpleNamespace

from embridge.allocator.layout import SLOTS_PER_PAGE
from embridge.allocator.status import TERMINAL, split
from embridge.pipeline.joining import open_control


def watch(state: SimpleNamespace, run_dirs: list[Path]) -> None:
    """Begin to look, in a thread of this process, until `report`."""
    os.nice(19)  # what it takes is what others leave
    state.violations, state.looks, state.changes, state.stop = [], 0, 0, False
    tables = [open_control(run_dir) for run_dir in run_dirs]
    state.thread = threading.Thread(target=_look, args=(state, run_dirs, tables))
    state.thread.start()


def _look(state: SimpleNamespace, run_dirs: list[Path], tables: list) -> None:
    last = [dict.fromkeys(range(control.limits.num_slots), 0) for control in tables]
    while not state.stop:
        for run_dir, control, seen in zip(run_dirs, tables, last, strict=True):
            load = control.status.load
            for page in range(control.lanes.num_pages):
                if control.lanes.page_lane(page) is None and not seen[page * SLOTS_PER_PAGE]:
                    continue
                for slot in range(page * SLOTS_PER_PAGE, (page + 1) * SLOTS_PER_PAGE):
                    word, before = load(slot), seen[slot]
                    state.looks += 1
                    if word == before:
                        continue
                    seen[slot] = word
                    state.changes += 1
                    was, now = split(before), split(word)
                    if word < before:
                        state.violations.append(f"{run_dir.name} slot {slot}: {was} decreased to {now}")
                    if was.epoch == now.epoch and was.phase >= TERMINAL:
                        state.violations.append(f"{run_dir.name} slot {slot}: {was} was the end, then {now}")


def report(state: SimpleNamespace) -> tuple[list[str], int, int]:
    """Stop looking. Returns (what was wrong, how often it looked, how many changes it saw)."""
    state.stop = True
    state.thread.join()
    return state.violations, state.looks, state.changes
