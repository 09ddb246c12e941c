"""Layers whose bytes say which expert they are of: what is out of place is seen."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eplb_plugin import PluginError
from eplb_plugin.doctor.model import KINDS, Model, pattern
from eplb_plugin.doctor.site import Site

PHY2LOG = np.array([[0, 1, 2, 3], [3, 2, 1, 0]], np.int32)


def model(own: slice = slice(2, 4)) -> Model:
    return Model(Site(torch.device("cpu")), PHY2LOG, own)


def test_bytes_fit_the_maps() -> None:
    """As made, and after rows and maps have changed together."""
    made = model()
    made.check("x")
    slots = torch.arange(2)
    rows = torch.zeros(2, made.rows[1].row_bytes, dtype=torch.uint8)
    made.rows[1].read(slots, rows)
    made.rows[1].write(slots.flip(0), rows)
    with pytest.raises(PluginError, match=r"^x: weights read by the forward pass: found"):
        made.check("x")
    made.switch([1], np.array([[3, 2, 0, 1]], np.int32))
    made.check("x")


@pytest.mark.parametrize("name", sorted(KINDS))
def test_two_wrong_bytes_that_add_up_to_none_are_seen(name: str) -> None:
    """Which the sum of a forward pass does not show."""
    made = model()
    tensor = made.tensors[0][name]
    held = (tensor if tensor.is_contiguous() else tensor.transpose(1, 2)).view(torch.uint8).flatten(1)[0]
    first, second = 0, int(torch.nonzero(held != held[0])[0])
    held[[first, second]] = held[[second, first]].clone()
    with pytest.raises(PluginError, match=rf"^x: bytes of {name} in layer 0: found"):
        made.check("x")


def test_no_two_experts_have_the_same_bytes() -> None:
    """Nor layers, nor tensors."""
    made = {
        bytes(pattern(layer, expert, number, 64).tolist())
        for layer in range(4) for expert in range(50) for number in range(3)
    }  # fmt: skip
    assert len(made) == 600
