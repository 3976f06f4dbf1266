"""What a seed decides: which faults there are, and what each request is like."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

KILLS = ("kill worker", "kill poller", "kill bootstrap", "kill client", "kill node", "kill launcher")
OTHERS = ("stop process", "stop client", "slow peer", "full memory", "cut link", "stop writer")
KINDS = (*KILLS, *OTHERS)
# those that cost a restart of a node: rarer
WEIGHTS = {"kill node": 0.4, "kill launcher": 0.4, "full memory": 0.25, "cut link": 0.3}

LONGEST = 2000  # tokens of a request; the window of a destination holds 512


@dataclass(frozen=True, slots=True)
class Request:
    """One request of a storm, as both its clients know it."""

    total: int
    parts: tuple[int, ...]  # where each part that is written ends
    pause_s: float  # between the parts
    abort_by: str  # "encode", "language", or nobody
    abort_after_s: float


def request_of(seed: int, room: int, longest: int = LONGEST) -> Request:
    """Any order of magnitude of length is as likely as any other; one in twelve is given up somewhere on its way."""
    rng = random.Random(f"{seed}/{room}")
    total = int(math.exp(rng.uniform(0, math.log(longest))))
    cuts = sorted(rng.sample(range(1, total), min(rng.choice([0, 0, 1, 3]), total - 1)))
    side = rng.choice(["encode", "language"]) if rng.random() < 1 / 12 else ""
    return Request(total, (*cuts, total), rng.choice([0.0, 0.002, 0.02]), side, rng.uniform(0, 0.05))


def kinds_of(seed: int, forced: tuple[str, ...] | None, possible: tuple[str, ...] = KINDS) -> list[str]:
    """Those that are forced, as far as they are possible; else each with probability 1/4, and one kind of kill at
    least.
    """
    if forced is not None:
        return [kind for kind in KINDS if kind in forced and kind in possible]
    rng = random.Random(f"kinds {seed}")
    drawn = [kind for kind in KINDS if rng.random() < 0.25 and kind in possible]
    if not set(drawn) & set(KILLS):
        drawn.append(rng.choice(KILLS))
    return drawn
