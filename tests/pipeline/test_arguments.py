"""Numbers of any type that is one, and roles that are none."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from embridge import attach, follow
from embridge.pipeline.arguments import is_time, said, whole


@pytest.mark.parametrize("number", [7, np.int64(7), np.uint8(7), torch.tensor(7), torch.tensor([7])[0], True])
def test_a_whole_number_of_any_type_is_an_int(number: Any) -> None:
    found = whole("room", number, 0, 7)
    assert type(found) is int
    assert found == number


@pytest.mark.parametrize(
    "number",
    [
        8,
        -1,
        7.0,
        np.float32(7),
        "7",
        None,
        [7],
        torch.tensor([7, 7]),
        torch.tensor(7, device="meta"),
        torch.tensor(7.0),
    ],
    ids=repr,
)
def test_what_is_none_or_out_of_range_is_a_value_error_that_names_it(number: Any) -> None:
    with pytest.raises(ValueError, match=re.escape(f"room: {number!r} is outside 0 to 7")):
        whole("room", number, 0, 7)


def test_seconds_may_be_of_any_real_type() -> None:
    assert all(map(is_time, (1, 1.5, np.float32(1), np.int64(1))))
    assert not any(map(is_time, ("1", None, 1j, 10**400, 10**5000)))


def test_a_value_is_said_whatever_it_is() -> None:
    assert said(7) == "7"
    assert said("x" * 999) == "'" + "x" * 199 + "..."
    assert said(10**5000) == "a int"


@pytest.mark.parametrize("join", [attach, partial(follow, rank=1)])
@pytest.mark.parametrize("role", ["encoder", "", None, 7])
def test_a_role_that_is_none_is_named_and_no_node_is_waited_for(join: Any, role: Any) -> None:
    """D9: else its error would ask whether a node is running in a folder that no node has."""
    with pytest.raises(ValueError, match=r"role: .* is none of encode, language"):
        join(role=role)
