"""Reads a bounded batch of messages a step and throttles a socket that keeps sending refused ones (P16).

So other peers are still served.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import zmq

from embridge.allocator.plain_enums import Metric
from embridge.workers.role import RoleContext
from embridge.workers.timing import NS

MESSAGES_AT_ONCE = 512
FRAMES_AT_ONCE = 64  # of one message; a message of a node has one, or two with the name of its connection
REFUSED_A_SECOND = 2000
REFUSED_AT_ONCE = 16
NOBLOCK, POLLIN = int(zmq.NOBLOCK), int(zmq.POLLIN)
COST_NS = NS // REFUSED_A_SECOND


class Reader:
    """Takes messages off a socket.

    A message with more frames than a node's messages have is dropped, at most `FRAMES_AT_ONCE` frames a call.

    A socket that brings more than `REFUSED_A_SECOND` refused messages rests for some milliseconds again and again, so
    refusing takes a small share of this process, whatever is sent. Meanwhile a flood fills the queue of its own
    connection, and then stays with its sender. Messages of other peers wait for the end of a rest, and are then taken
    in turn with the flood, one for one, as libzmq reads its connections (P16).
    """

    def __init__(self, socket: zmq.Socket[bytes], num_frames: int, ctx: RoleContext) -> None:
        self.socket = socket
        self._num_frames = num_frames
        self._ctx = ctx
        self._is_dropping = False
        self._paid_ns = 0  # when refused messages will have taken no more than their share of time
        self.rests_until_ns = 0

    def messages(self) -> Iterator[list[zmq.Frame]]:
        """The messages that have come, each as its frames: `MESSAGES_AT_ONCE` at most, and none once a rest begins."""
        for count in range(MESSAGES_AT_ONCE):
            try:
                frames = self._take()
            except zmq.Again:
                return
            if frames is not None:
                yield frames
            if self.is_resting():
                return
            # mostly one has come; to find the end of many by an exception costs less than to ask each time
            if not count and not int(self.socket.get(zmq.EVENTS)) & POLLIN:
                return

    def is_resting(self) -> bool:
        """Whether a rest has begun that is not over."""
        return self.rests_until_ns != 0 and self.rests_until_ns > time.monotonic_ns()

    def refuse(self) -> None:
        """Count the last message as refused."""
        self._ctx.count(Metric.MESSAGES_REFUSED)
        self._charge()

    def _charge(self) -> None:
        now_ns = time.monotonic_ns()
        self._paid_ns = max(self._paid_ns, now_ns) + COST_NS
        if self._paid_ns - now_ns > (REFUSED_AT_ONCE - 1) * COST_NS:
            self.rests_until_ns = self._paid_ns - REFUSED_AT_ONCE // 2 * COST_NS

    def _take(self) -> list[zmq.Frame] | None:
        """The frames of one message; None for a message that is dropped, until all of it is dropped.

        Raises:
            zmq.Again: there is no whole message; libzmq shows the frames of one together.
        """
        frames = []
        for _ in range(FRAMES_AT_ONCE):
            frame = self.socket.recv(NOBLOCK, copy=False)
            frames.append(frame)
            if not frame.more:
                is_ours = len(frames) == self._num_frames and not self._is_dropping
                self._is_dropping = False
                if is_ours:
                    return frames
                self.refuse()
                return None
        self._is_dropping = True
        self._charge()
        return None
