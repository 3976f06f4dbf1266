"""Spans of OpenTelemetry, from the times at which requests entered their phases."""

from __future__ import annotations

import time

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context
from support.alone import EncodeAlone, LanguageAlone

from embridge.allocator.status import Phase
from embridge.integrations.opentelemetry import RequestSpans


class Traces:
    """A tracer provider that keeps its spans, and those that were made."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.spans = RequestSpans(self.provider)

    def made(self) -> dict[str, ReadableSpan]:
        return {span.name: span for span in self.exporter.get_finished_spans()}


def test_a_request_that_succeeds_is_a_span_with_one_for_each_phase() -> None:
    node, traces = EncodeAlone(), Traces()
    sender = node.sender(7, 8, rows=4)
    node.init(7, [3, 4])
    assert not traces.spans.record(sender)  # it has not ended
    node.advance(0.3)
    node.write(sender, 4, 8)
    assert sender.poll() == Phase.Success
    assert traces.spans.record(sender)
    made = traces.made()
    whole = made.pop("embridge send")
    assert whole.kind == SpanKind.PRODUCER
    assert whole.attributes is not None
    assert (whole.attributes["embridge.room"], whole.attributes["embridge.tokens"]) == (7, 8)
    assert whole.status.status_code == StatusCode.UNSET
    stamps = sender.stamps_ns
    lasted = {name: (span.end_time or 0) - (span.start_time or 0) for name, span in made.items()}
    assert sum(lasted.values()) == (whole.end_time or 0) - (whole.start_time or 0) == stamps[Phase.Success] - stamps[0]
    assert {"bootstrapping", "waiting_for_input"} <= set(lasted)
    for span in made.values():
        assert span.parent is not None
        assert span.parent.span_id == whole.context.span_id


def test_a_request_that_fails_says_why() -> None:
    node, traces = LanguageAlone(), Traces()
    receiver = node.receiver(3)
    receiver.abort("enough")
    node.settle()
    assert traces.spans.record(receiver)
    span = traces.made()["embridge receive"]
    assert span.kind == SpanKind.CONSUMER
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "enough")
    assert span.attributes is not None
    assert span.attributes["error.type"] == "aborted"


def test_a_span_stands_under_the_one_that_is_given_and_in_the_time_of_day() -> None:
    node, traces = LanguageAlone(), Traces()
    node.world.now_ns = time.monotonic_ns()
    receiver = node.receiver(3)
    receiver.abort("enough")
    node.settle()
    parent = traces.provider.get_tracer("test").start_span("step")
    assert traces.spans.record(receiver, context=set_span_in_context(parent))
    span = traces.made()["embridge receive"]
    assert span.parent is not None
    assert span.parent.span_id == parent.get_span_context().span_id
    assert (span.end_time or 0) / 1e9 == pytest.approx(time.time(), abs=30)
