"""When a first grant or an abort that nobody has answered is sent again: ever more rarely, for encoders may come late.
"""

from __future__ import annotations

from typing import Final

from embridge.workers.timing import NS

MAX_RESEND_S: Final = 2.0
MOST_RESENDS_A_S = 100  # first grants that nobody has answered: of many, each is sent again more rarely
TOGETHER_NS: Final = NS // 4  # of many, some are sent in one go: five threads of two nodes wake up for each go


def sent_again_ns(now_ns: int, resend_s: float, times: int, slot: int, num_unheard: int) -> int:
    """When what was sent again `times` times is due once more; `num_unheard` first grants wait for an answer."""
    most_s = num_unheard / MOST_RESENDS_A_S * (0.75 + slot * 0.618 % 1 / 2)  # not all at one time
    pause_s = min(resend_s * 2**times, max(MAX_RESEND_S, most_s))
    due_ns = now_ns + int(pause_s * NS)
    return due_ns + -due_ns % TOGETHER_NS if pause_s > MAX_RESEND_S else due_ns
