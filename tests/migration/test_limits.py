"""What is switched together: every changed layer once, in order, within the bounds; and the memory for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplb_plugin import PluginError, Topology
from eplb_plugin.migration.hops import least_rows
from eplb_plugin.migration.limits import Budget, batches, share_memory
from eplb_plugin.migration.schedule import schedule
from eplb_plugin.settings.sections import STAGING_BYTES
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


@given(
    staging=st.integers(1, 1 << 32),
    message=st.integers(1, 1 << 30),
    row_bytes=st.integers(1, 1 << 30),
    slots=st.integers(1, 40),
    halves=st.integers(1, 2),
    buffers=st.integers(1, 2),
)
@QUICK
def test_memory_is_bounded_by_the_setting(
    staging: int, message: int, row_bytes: int, slots: int, halves: int, buffers: int
) -> None:
    """All of it together; enough rows to get on and a message of one; no more than a layer, nor than is asked for."""
    budget, least = Budget(message_bytes=message, staging_bytes=staging), halves * least_rows(slots) + buffers
    if staging < least * row_bytes:
        with pytest.raises(PluginError, match=f"staging_bytes: found {staging}, expected at least {least * row_bytes}"):
            share_memory(budget, row_bytes, slots, halves=halves, buffers=buffers)
        return
    rows = share_memory(budget, row_bytes, slots, halves=halves, buffers=buffers)
    assert (halves * rows.staged + buffers * rows.sent) * row_bytes <= staging
    assert least_rows(slots) <= rows.staged <= slots
    assert 1 <= rows.sent <= rows.staged
    assert rows.sent == 1 or rows.sent * row_bytes <= message
    assert rows.staged == slots or (halves * (rows.staged + 1) + buffers * rows.sent) * row_bytes > staging


def test_memory_by_default() -> None:
    """DeepSeek-V3's experts of 42 MiB keep to 256 MiB, over any wires; experts too large for that get the least."""
    row_bytes = 44_040_192 + 10_752 + 32  # FP8 weights, scales, seal and alignment
    assert share_memory(Budget(), row_bytes, 36, halves=2, buffers=2) == (2, 1)
    assert share_memory(Budget(), row_bytes, 36, halves=1, buffers=1) == (5, 1)
    assert share_memory(Budget(), STAGING_BYTES, 2, halves=2, buffers=2) == (2, 1)
    assert share_memory(Budget(), 1 << 20, 36, halves=2, buffers=2) == (36, 32)  # whole layers
