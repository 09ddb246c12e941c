"""Logical maps are what a loop over the slots says, and stay where they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given

from eplb_plugin import Placement, PluginError, Topology
from eplb_plugin.migration.maps import LogicalMaps
from strategies import QUICK, migrations


def listed(phy2log: Any, width: int) -> tuple[Any, Any]:
    experts = int(phy2log.max()) + 1
    log2phy = np.full((len(phy2log), experts, width), -1)
    count = np.zeros((len(phy2log), experts), int)
    for (layer, slot), expert in np.ndenumerate(phy2log):
        log2phy[layer, expert, count[layer, expert]] = slot
        count[layer, expert] += 1
    return log2phy, count


@given(migrations())
@QUICK
def test_maps_after_a_switch(case: tuple[Any, Any, Topology]) -> None:
    """Equal to the plain listing before, after some layers and after all were switched, at the same addresses."""
    old, new, _ = case
    maps = LogicalMaps(Placement(old))
    places = maps.log2phy.data_ptr(), maps.replica_count.data_ptr()
    current = old.copy()
    for layers in ([], list(range(0, len(old), 2)), list(range(len(old)))):
        if layers:
            current[layers] = new[layers]
            maps.switch(layers, new[layers])
        log2phy, count = listed(current, maps.log2phy.shape[2])
        assert np.array_equal(maps.log2phy, log2phy)
        assert np.array_equal(maps.replica_count, count)
    assert places == (maps.log2phy.data_ptr(), maps.replica_count.data_ptr())


def test_width_at_deepseek_scale() -> None:
    """58 layers, 256 experts in 288 slots: under 4 MiB, where 1,024 columns of int64 take 116."""
    maps = LogicalMaps(Placement(np.tile(np.arange(288) % 256, (58, 1))))
    assert maps.log2phy.shape == (58, 256, 33)
    assert maps.nbytes < 4 << 20


def test_a_bad_row_changes_nothing() -> None:
    """A row that loses an expert is refused before the first write."""
    maps = LogicalMaps(Placement(np.array([[0, 1, 2, 0]])))
    before = maps.log2phy.clone()
    with pytest.raises(PluginError, match="logical expert 1"):
        maps.switch([0], np.array([[0, 0, 2, 0]]))
    assert np.array_equal(maps.log2phy, before)
