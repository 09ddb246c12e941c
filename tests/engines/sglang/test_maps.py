"""Maps of single layers, against SGLang's own update of all of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sglang.srt.eplb.expert_location import ExpertLocationMetadata

from eplb_plugin import Placement, PluginError, Topology
from eplb_plugin.engines.sglang.maps import switch_maps
from eplb_plugin.engines.sglang.tables import dispatch_table

LAYERS, EXPERTS, TOPOLOGY, RANK = 5, 9, Topology(2, 2, 4), 3


def placement(seed: int) -> Placement:
    rows = np.tile(np.arange(TOPOLOGY.num_slots) % EXPERTS, (LAYERS, 1))
    return Placement(np.random.default_rng(seed).permuted(rows, axis=1))


def metadata_of(placed: Placement, static: bool) -> ExpertLocationMetadata:
    """As SGLang makes it on a device: the copies for the host are tensors of their own."""
    wide = np.full((LAYERS, EXPERTS, placed.num_slots), -1, np.int64)
    wide[:, :, : placed.log2phy.shape[2]] = placed.log2phy
    phy2log, log2phy = torch.from_numpy(placed.phy2log).long(), torch.from_numpy(wide)
    table = torch.from_numpy(dispatch_table(placed.log2phy, TOPOLOGY, RANK, placed.num_slots)) if static else None
    return ExpertLocationMetadata(
        physical_to_logical_map=phy2log,
        physical_to_logical_map_cpu=phy2log.clone(),
        logical_to_all_physical_map=log2phy,
        logical_to_all_physical_map_cpu=log2phy.clone(),
        logical_to_all_physical_map_num_valid=torch.from_numpy(placed.replica_count).long(),
        ep_size=TOPOLOGY.num_ranks,
        logical_to_rank_dispatch_physical_map=table,
    )


def tensors(metadata: ExpertLocationMetadata) -> dict[str, Any]:
    return {name: value for name, value in vars(metadata).items() if isinstance(value, torch.Tensor)}


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("layers", [[2], [0, 4], list(range(LAYERS))])
def test_as_sglang_would_update_them(static: bool, layers: list[int]) -> None:
    """Every map of these layers and of no other, at the same addresses; copies of 8 experts come and go."""
    old, new = placement(1), placement(2)
    new = Placement(np.where(new.phy2log == 0, 8, np.where(new.phy2log == 8, 0, new.phy2log)))
    ours, theirs = metadata_of(old, static), metadata_of(old, static)
    addresses = {name: one.data_ptr() for name, one in tensors(ours).items()}
    switch_maps(ours, layers, new.phy2log[layers], TOPOLOGY, RANK)
    theirs.update(metadata_of(new, static), update_layer_ids=layers)
    table = "logical_to_rank_dispatch_physical_map"
    for name, found in tensors(ours).items():
        assert found.data_ptr() == addresses[name]
        if name != table:  # SGLang draws for all layers in one sequence
            assert torch.equal(found, tensors(theirs)[name]), name
    if static:
        slots = tensors(ours)[table][layers].numpy()
        held = np.take_along_axis(new.phy2log[layers], slots, 1)
        np.testing.assert_array_equal(held, np.tile(np.arange(EXPERTS), (len(layers), 1)))
        others = np.setdiff1d(np.arange(LAYERS), layers)
        assert torch.equal(tensors(ours)[table][others], tensors(metadata_of(old, static))[table][others])


def test_a_lost_expert_is_refused_before_anything_is_written() -> None:
    metadata = metadata_of(placement(1), True)
    before = {name: one.clone() for name, one in tensors(metadata).items()}
    with pytest.raises(PluginError, match="logical expert 3 in no slot"):
        switch_maps(metadata, [1], np.where(placement(2).phy2log == 3, 4, placement(2).phy2log)[:1], TOPOLOGY, RANK)
    assert all(torch.equal(one, before[name]) for name, one in tensors(metadata).items())
