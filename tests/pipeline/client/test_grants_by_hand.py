"""Grants, resumes and drains that a scheduler decides by hand, with an `EmbeddingReceiver`."""

from __future__ import annotations

import numpy as np
import pytest
from support.alone import BLOCK_SIZE, LanguageAlone

from embridge.allocator.status import Phase
from embridge.workers import messages as msg

pytestmark = pytest.mark.usefixtures("quiet")


def test_a_resume_that_claims_more_than_has_landed_is_the_callers_mistake() -> None:
    """R2."""
    node = LanguageAlone()
    receiver = node.receiver(1)
    node.status(receiver, Phase.Transferring, 8)
    with pytest.raises(ValueError, match="sent_tokens: 9 > 8 tokens that have landed"):
        receiver.resume_transfer(receiver.allocate(1), 9)


def test_a_drain_frees_whole_blocks_only_and_at_the_end_all() -> None:
    """R3: a partly filled block is kept while rows may still come into it."""
    node = LanguageAlone()
    receiver = node.receiver(1, blocks=3)
    node.status(receiver, Phase.Transferring, 6, total_tokens=10)
    assert receiver.release_drained(6) == 1
    assert node.counts() == {"free": 6, "exposed": 2}
    node.status(receiver, Phase.Success, 10, total_tokens=10)
    assert receiver.release_drained(10) == 2
    assert node.control.blocks.counts().free == 8


def test_a_resume_is_due_when_all_that_was_granted_is_sent_whatever_the_phase() -> None:
    """R5, B9."""
    node = LanguageAlone()
    receiver = node.receiver(1, blocks=2)
    node.status(receiver, Phase.WaitingForInput, 8)
    assert receiver.needs_resume
    receiver.resume_transfer(receiver.allocate(1), 8)
    assert not receiver.needs_resume
    node.status(receiver, Phase.Transferring, 8)
    assert not receiver.needs_resume
    node.status(receiver, Phase.Transferring, 12)
    assert receiver.needs_resume
    node.status(receiver, Phase.Success, 16)
    assert not receiver.needs_resume


@pytest.mark.parametrize("index", [-1, 8, 1 << 31])
def test_a_block_index_of_the_callers_is_checked_before_it_is_granted(index: int) -> None:
    """D15."""
    node = LanguageAlone()
    receiver = node.receiver(1, blocks=None)
    with pytest.raises(ValueError, match=f"embedding_indices: {index} is outside 0 to 7"):
        receiver.init([index])


def test_an_allocation_that_ends_inside_a_block_is_legal_where_it_is_the_last() -> None:
    """B6: 976 tokens in 8 blocks of 128; more than one block less is not."""
    node = LanguageAlone()
    receiver = node.receiver(1, blocks=None)
    blocks = receiver.allocate(3)
    for tokens in (8, 13):
        with pytest.raises(ValueError, match="does not end in the last of 3 blocks of 4 tokens; expected 9 to 12"):
            receiver.init(blocks, tokens)
    receiver.init(blocks, 9)
    node.settle()
    assert node.sent(msg.Init)[-1].allocated_tokens == 9
    assert receiver.granted_tokens == 9
    assert np.array_equal(receiver.current_allocation(), blocks)
    assert node.node.geometry.block_size == BLOCK_SIZE
