"""Spans of OpenTelemetry for requests that have ended, made from the times at which they entered their phases.

    spans = RequestSpans(trace.get_tracer_provider())
    finished, failed = transfer.pop_transferred()
    for request in (*finished, *failed):
        spans.record(request)

Nothing is traced while a request is on its way, so tracing costs nothing but these calls. Exporter, sampling and
resource are those of the tracer provider, which is the caller's.
"""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Final

from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, TracerProvider, set_span_in_context

from embridge import EmbeddingReceiver, EmbeddingRequest, EmbeddingSender, Phase, TransferError

Traced = EmbeddingRequest | EmbeddingReceiver | EmbeddingSender
_NAMES: Final = {Phase.WaitingForInput: "waiting_for_input"}


class RequestSpans:
    """Makes the spans; any thread may call `record`."""

    def __init__(self, provider: TracerProvider) -> None:
        self._tracer: Tracer = provider.get_tracer("embridge")

    def record(self, request: Traced, *, context: Context | None = None) -> bool:
        """Make the span of a request that has ended, and in it a span for each phase before the end.

        `context`: where its parent is; by default the current one. Returns False, and makes nothing, for a request that
        has not ended, or was refused before it was opened.
        """
        stamps = request.stamps_ns
        path = [phase for phase in Phase if stamps[phase]]
        if not path or not path[-1].is_terminal:
            return False
        to_wall = time.time_ns() - time.monotonic_ns()
        begin, end = stamps[path[0]] + to_wall, stamps[path[-1]] + to_wall
        is_sent = isinstance(request, EmbeddingSender)
        span = self._tracer.start_span(
            "embridge send" if is_sent else "embridge receive",
            context,
            SpanKind.PRODUCER if is_sent else SpanKind.CONSUMER,
            {"embridge.room": request.room, **_attributes(request)},
            start_time=begin,
        )
        if span.is_recording():
            inner = set_span_in_context(span, context)
            for phase, after in pairwise(path):
                name = _NAMES.get(phase, phase.name.lower())
                start, stop = stamps[phase] + to_wall, stamps[after] + to_wall
                self._tracer.start_span(name, inner, start_time=start).end(max(start, stop))
            _say_how_it_ended(span, _failure(request))
        span.end(max(begin, end))
        return True


def _attributes(request: Traced) -> dict[str, int]:
    if isinstance(request, EmbeddingRequest):
        return {"embridge.tokens": request.total_embedding_length, "embridge.rounds": request.num_rounds}
    return {"embridge.tokens": request.sent_tokens}


def _failure(request: Traced) -> TransferError | None:
    return request.failure if isinstance(request, EmbeddingRequest) else request.failure_exception()


def _say_how_it_ended(span: Span, failure: TransferError | None) -> None:
    if failure is not None:
        span.set_attribute("error.type", failure.code.name.lower())
        span.set_status(Status(StatusCode.ERROR, failure.reason))
