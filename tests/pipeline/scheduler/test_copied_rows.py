"""Rows of a result, or of a chunk, in a tensor of the caller's: copied once, from where they lie."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import pytest
import torch
from support.alone import BLOCK_SIZE, ENCODE_ADDRESS
from support.lending import Scheduler
from support.rows import raw, rows_of

from embridge.allocator.status import Phase
from embridge.pipeline.scheduler.copying import BUFFERS
from embridge.pipeline.scheduler.request import EmbeddingRequest, EmbeddingResult

pytestmark = pytest.mark.usefixtures("quiet")
TOTAL = 14


def arrive(*, lent: bool) -> tuple[Scheduler, EmbeddingRequest, EmbeddingResult]:
    """A result in blocks, or in host memory; the latter because somebody holds what would have to be left free."""
    node = Scheduler(num_blocks=16 if lent else 5)
    if not lent:
        holder = node.client.receiver(ENCODE_ADDRESS, 99)
        node.settle()
        holder.allocate(1)
    request = node.arrive(1, TOTAL)
    assert node.is_lent(request) == lent
    assert request.result is not None
    return node, request, request.result


@pytest.mark.parametrize("lent", [True, False], ids=["from blocks", "from host memory"])
def test_rows_are_copied_once_into_a_tensor_of_the_caller_s(lent: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """P6: from where they lie, into part of a batch with any strides, which keeps its other rows."""
    node, request, result = arrive(lent=lent)
    embeddings, ids, positions, _ = rows_of(node.node.geometry, request.room, 0, TOTAL)
    copied, copy = list[int](), torch.Tensor.copy_

    def noted(self: torch.Tensor, source: torch.Tensor, **options: bool) -> torch.Tensor:
        copied.append(source.data_ptr())
        assert options == {"non_blocking": False}
        return copy(self, source, **options)

    monkeypatch.setattr(torch.Tensor, "copy_", noted)
    batch = torch.zeros(TOTAL + 3, 2, dtype=torch.bfloat16)
    result.copy_to(batch[2 : TOTAL + 2])
    assert raw(batch[2 : TOTAL + 2]) == raw(embeddings)
    assert not batch[:2].any()
    assert not batch[-1].any()
    columns = torch.zeros(2, TOTAL, dtype=torch.bfloat16, requires_grad=True)
    result.copy_to(columns.T)
    assert raw(columns.detach().T) == raw(embeddings)
    for buffer, want in (("fill_ids", ids), ("mrope_positions", positions)):
        got = torch.empty_like(want)
        result.copy_to(got, buffer=buffer)
        assert torch.equal(got, want)
    assert result.fill_ids is not None
    assert result.mrope_positions is not None
    begin = result.input_embeddings.data_ptr()
    assert copied == [begin, begin, result.fill_ids.data_ptr(), result.mrope_positions.data_ptr()]


def test_rows_of_a_streamed_request_are_copied_as_they_land() -> None:
    node = Scheduler()
    request = node.add(1, is_streamed=True)
    receiver, batch = node.announce(request, TOTAL), torch.zeros(TOTAL, 2, dtype=torch.bfloat16)
    start = 0
    for end in (3, BLOCK_SIZE + 1, TOTAL):
        node.write(request, start, end)
        node.status(receiver, Phase.Transferring, end, total_tokens=TOTAL, ready_tokens=TOTAL)
        for chunk in request.available(start):
            chunk.copy_to(batch[chunk.first : chunk.end])
            start = chunk.end
        assert start == end
    assert raw(batch) == raw(rows_of(node.node.geometry, request.room, 0, TOTAL).input_embeddings)


def test_an_error_says_what_to_give() -> None:
    _, _, result = arrive(lent=True)
    wanted = r"; give torch\.empty\(\(14, 2\), dtype=torch\.bfloat16\), or as much of a larger one$"
    good = torch.empty(TOTAL, 2, dtype=torch.bfloat16)
    for tensor, text in (
        ([1], r"^tensor: list is no tensor"),
        (good[1:], r"^tensor: shape \(13, 2\) is not \(14, 2\)"),
        (good.T, r"^tensor: shape \(2, 14\) is not \(14, 2\)"),
        (good.float(), r"^tensor: dtype torch\.float32 is not torch\.bfloat16"),
        (good.to("meta"), r"^tensor: a meta tensor, which has no data"),
        (torch.zeros(TOTAL, 2, dtype=torch.bfloat16).to_sparse(), r"^tensor: a tensor of layout torch\.sparse_coo"),
        (good[:1].expand(TOTAL, 2), r"^tensor: a tensor whose rows lie in the same memory"),
    ):
        with pytest.raises(ValueError, match=text + wanted):
            result.copy_to(tensor)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^buffer: 'rows' is none of input_embeddings, "):
        result.copy_to(good, buffer="rows")
    with pytest.raises(ValueError, match=r"^buffer: this node's geometry has no deepstack_embeddings$"):
        result.copy_to(good, buffer="deepstack_embeddings")
    with pytest.raises(ValueError, match=r"^stream: given for a tensor on cpu; leave it out"):
        result.copy_to(good, object())
    assert all(hasattr(result, buffer) for buffer in BUFFERS)


class OnGpu(torch.Tensor):
    """Says that it is on a GPU, of which there need be none."""

    is_cuda = True


def test_onto_a_gpu_nobody_waits_for_the_copy_and_it_is_made_on_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """What PyTorch is asked to do; that it is so on a GPU is PyTorch's."""
    _, _, result = arrive(lent=True)
    now_on, streams = list[Any](), list[Any]()

    @contextmanager
    def entered(stream: Any) -> Any:
        now_on.append(stream)
        yield
        now_on.pop()

    def noted(self: torch.Tensor, source: torch.Tensor, *, non_blocking: bool) -> torch.Tensor:
        assert source.data_ptr() == result.input_embeddings.data_ptr()
        assert non_blocking
        streams.append(list(now_on))
        return self

    monkeypatch.setattr(torch.cuda, "stream", entered)
    monkeypatch.setattr(torch.Tensor, "copy_", noted)
    tensor = torch.empty(TOTAL, 2, dtype=torch.bfloat16).as_subclass(OnGpu)
    result.copy_to(tensor, "mine")
    result.copy_to(tensor)
    assert streams == [["mine"], []]
