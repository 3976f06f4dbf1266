"""How long until a scheduler has the first rows of a request that its encoder gives in pieces?

The encoder takes ten times as long as the transfer of all its rows. Its device works on while rows are copied: piece k
is there at k sixteenths of that time. It gives each piece when it is there, and the scheduler, which sleeps, reads the
rows of a streamed request as they land; or it gives all rows when the last is there. The time is from the beginning of
the encoder's work to the first row, and to the last, in the scheduler's hands. The first row of each request is looked
at, and of streamed ones the last row of every piece.
"""

from __future__ import annotations

import ctypes
import time
from functools import partial

import torch
from _carriers import Job
from _harness import FORK, Benchmark, Case, Figures, Start, percentile, together
from _ours import Embridge

import embridge

JOB = Job(tokens=1250, hidden=3584, in_flight=1)  # 9 MB
PIECES = 16
TIMES = 10  # so many times as long as the transfer the encoder works
WITHIN_S = 60.0
ALONE, DONE, PIECEWISE, STREAMED = (
    "the transfer alone",
    "given when done",
    "given in pieces, popped at the end",
    "given in pieces, streamed",
)

bench = Benchmark(__file__, __doc__, rounds=8)


class Encoding(Embridge):
    """One request at a time: an encoder that works for `work_ns`, and a scheduler that waits."""

    def __init__(self) -> None:
        super().__init__(JOB)
        self._may_begin = FORK.Semaphore(0)

    def run(self, total: int, pieces: int, work_ns: int, *, is_streamed: bool) -> Figures:
        self.begin(total)
        begun, first, last = (FORK.RawArray(ctypes.c_int64, total) for _ in range(3))
        encoder = partial(self._encode, begun, pieces, work_ns)
        scheduler = partial(self._schedule, first, last, is_streamed)
        together(encoder, scheduler, within_s=WITHIN_S)
        skip = total // 4  # what comes first finds nothing warm
        spans = {"first": first, "last": last}
        return {
            name: percentile([end - begin for begin, end in zip(begun, ends, strict=True)][skip:], 50) / 1e6
            for name, ends in spans.items()
        }

    def _encode(self, begun: ctypes.Array[ctypes.c_int64], pieces: int, work_ns: int, start: Start) -> None:
        tokens, room = self.job.tokens, self._first_room()
        rows = self.job.empty()
        ids, positions = torch.zeros(tokens, dtype=torch.int32), torch.zeros(tokens, 3, dtype=torch.int32)
        bounds = [k * tokens // pieces for k in range(pieces + 1)]
        with embridge.attach(self.nodes[0].run_dir) as client:
            start()
            for number in range(self._total):
                self._may_begin.acquire()
                rows.fill_(number % 100 + 1)
                sender = client.sender(room + number, tokens)
                began = begun[number] = time.monotonic_ns()
                for k in range(pieces):
                    there_ns = began + (k + 1) * work_ns // pieces
                    time.sleep(max(0, there_ns - time.monotonic_ns()) / 1e9)
                    low, high = bounds[k], bounds[k + 1]
                    sender.write(low, rows[low:high], ids[low:high], positions[low:high])

    def _schedule(
        self,
        first: ctypes.Array[ctypes.c_int64],
        last: ctypes.Array[ctypes.c_int64],
        is_streamed: bool,
        start: Start,
    ) -> None:
        room, addr = self._first_room(), self.nodes[0].bootstrap_addr
        with embridge.attach(self.nodes[1].run_dir) as client:
            transfer = embridge.TransferQueue(client)
            prealloc = embridge.PreallocQueue(client, transfer)
            start()
            for number in range(self._total):
                request = embridge.EmbeddingRequest(room=room + number, bootstrap_addr=addr, is_streamed=is_streamed)
                prealloc.add(request)
                self._may_begin.release()
                want, seen, chunk = number % 100 + 1, 0, None
                while True:
                    client.wait(0.1)
                    client.poll()
                    for risen in transfer.pop_available():
                        for chunk in risen.available(seen):
                            first[number] = first[number] or time.monotonic_ns()
                            assert chunk.input_embeddings[0, 0] == chunk.input_embeddings[-1, -1] == want, "wrong rows"
                            seen = chunk.end
                    finished, failed = transfer.pop_transferred()
                    assert not failed, failed[0].failure
                    if finished:
                        break
                last[number] = time.monotonic_ns()
                first[number] = first[number] or last[number]
                assert request.result is not None
                assert request.result.input_embeddings[0, 0] == request.result.input_embeddings[-1, -1] == want
                request.release()
                chunk = None  # else views of the node's memory outlive its client


def main() -> None:
    encoding = Encoding()
    try:
        total = bench.scaled(80)
        encoding.run(total, 1, 0, is_streamed=False)  # what comes first finds nothing warm
        work_ns = int(TIMES * 1e6 * encoding.run(total, 1, 0, is_streamed=False)["last"])
        cases: dict[str, Case] = {
            ALONE: partial(encoding.run, total, 1, 0, is_streamed=False),
            DONE: partial(encoding.run, total, 1, work_ns, is_streamed=False),
            PIECEWISE: partial(encoding.run, total, PIECES, work_ns, is_streamed=False),
            STREAMED: partial(encoding.run, total, PIECES, work_ns, is_streamed=True),
        }
        results = bench.interleave(cases)
    finally:
        encoding.close()
    title = f"9 MB from an encoder that works for {work_ns / 1e6:.1f} ms, in {PIECES} pieces"
    bench.show(title, results, {"first": "first row, ms", "last": "last row, ms"})
    bench.at_most("the first row, streamed over given when done", results.ratio("first", STREAMED, DONE), 0.2)
    bench.at_most("the last row, streamed over given when done", results.ratio("last", STREAMED, DONE), 1)
    bench.finish()


if __name__ == "__main__":
    main()
