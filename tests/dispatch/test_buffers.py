"""The buffers of a pass, as those that pass them on name them."""

from __future__ import annotations

import pytest
import torch

from eplb_plugin.dispatch import torch_ops
from eplb_plugin.dispatch.buffers import Counters, LayerTables


@pytest.mark.parametrize(("name", "taken"), [("cover", LayerTables), ("look_up", None), ("record", None)])
def test_operators_name_them_in_this_order(name: str, taken: type | None) -> None:
    """An operator takes the fields one by one, by place: its schema ends with the counters', in their order."""
    assert torch_ops  # its import defines the operators
    given = [one.name for one in getattr(torch.ops.eplb_plugin, name).default._schema.arguments]
    assert given[-len(Counters._fields) :] == list(Counters._fields)
    if taken is not None:
        assert given[1 : 1 + len(LayerTables._fields)] == list(LayerTables._fields)
