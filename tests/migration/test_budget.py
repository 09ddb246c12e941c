"""What is switched together: every changed layer once, in order, within the bounds."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from eplb_plugin import Topology
from eplb_plugin.migration.budget import Budget, batches
from eplb_plugin.migration.schedule import schedule
from strategies import QUICK, migrations


@given(migrations(max_layers=8), st.integers(1, 4), st.one_of(st.none(), st.integers(1, 4000)), st.data())
@QUICK
def test_batches_keep_to_the_budget(
    case: tuple[Any, Any, Topology], layers: int, size: int | None, data: st.DataObject
) -> None:
    """On every rank, unless one layer alone is larger; and no batch could have taken the next layer too."""
    old, new, topology = case
    plan = schedule(old, new, topology)
    row_bytes = np.array([data.draw(st.sampled_from([16, 400, 1000])) for _ in old])
    capacity = int(row_bytes.max()) * topology.slots_per_rank
    found = batches(plan, row_bytes.tolist(), Budget(layers, size), capacity)
    assert [layer for batch in found for layer in batch] == plan.changed_layers
    staged = plan.staged_rows * row_bytes[:, None]
    bound = min(capacity, size or capacity)
    for index, batch in enumerate(found):
        assert len(batch) <= layers
        assert staged[batch].sum(axis=0).max() <= capacity
        assert len(batch) == 1 or staged[batch].sum(axis=0).max() <= bound
        if index + 1 < len(found) and len(batch) < layers:
            assert staged[[*batch, found[index + 1][0]]].sum(axis=0).max() > bound
