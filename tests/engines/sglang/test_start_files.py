"""Files that SGLang starts from: ours are loaded by its own class, and its own are read by ours."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sglang.srt.eplb import expert_location

from eplb_plugin import Placement, PluginError
from eplb_plugin.engines.sglang.dumps import read_torch_map
from eplb_plugin.file_kinds import kind_of
from eplb_plugin.placement_formats import read_map

PLACED = Placement(np.array([[3, 2, 1, 0, 1, 3], [0, 1, 3, 2, 2, 0]]), np.array([1, 3]))
LAYERS, RANKS, EXPERTS = 5, 3, 4


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> Any:
    """path -> the maps that a server begins with whose --init-expert-location is this file."""
    monkeypatch.setattr(
        expert_location.ModelConfigForExpertLocation,
        "from_model_config",
        lambda model_config: expert_location.ModelConfigForExpertLocation(LAYERS, EXPERTS),
    )
    parallel = SimpleNamespace(ep_size=RANKS, elastic_ep_initial_size=None, nnodes=1)
    monkeypatch.setattr(expert_location, "get_parallel", lambda: parallel)
    monkeypatch.setattr(expert_location, "get_device", lambda: SimpleNamespace(device="cpu"))

    def load(path: Path) -> expert_location.ExpertLocationMetadata:
        moe = SimpleNamespace(
            init_expert_location=str(path), ep_num_redundant_experts=PLACED.num_slots - EXPERTS,
            ep_dispatch_algorithm=None, ep_join_mode=None, moe_a2a_backend="none",
        )  # fmt: skip
        monkeypatch.setattr(expert_location, "get_exec", lambda: SimpleNamespace(moe=moe))
        return expert_location.compute_initial_expert_location_metadata(None, 0)

    return load


def test_sglang_loads_our_file(loaded: Any, tmp_path: Path) -> None:
    """Its class has our rows at their decoder layers, and as many replicas of every expert."""
    PLACED.export("sglang", tmp_path / "start.json", LAYERS)
    found = loaded(tmp_path / "start.json")
    assert found.num_layers == LAYERS
    np.testing.assert_array_equal(found.physical_to_logical_map[PLACED.layer_ids], PLACED.phy2log)
    counts = found.logical_to_all_physical_map_num_valid[PLACED.layer_ids]
    np.testing.assert_array_equal(counts, PLACED.replica_count)


@pytest.mark.parametrize("ending", ["json", "pt"])
def test_we_read_what_sglang_loads(loaded: Any, tmp_path: Path, ending: str) -> None:
    """Both kinds of file, told apart by their content, and a recording is no map."""
    PLACED.export("sglang", tmp_path / "start.json", LAYERS)
    maps = loaded(tmp_path / "start.json").physical_to_logical_map
    torch.save({"physical_to_logical_map": maps}, tmp_path / "start.pt")
    torch.testing.assert_close(loaded(tmp_path / "start.pt").physical_to_logical_map, maps)
    path = (tmp_path / f"start.{ending}").rename(tmp_path / "other.name")
    kind = kind_of(path)
    assert kind is not None
    assert kind.what == "SGLang's map of experts"
    found = read_torch_map(path) if kind.name == "torch-map" else read_map(path, kind)
    np.testing.assert_array_equal(found.phy2log, maps)
    torch.save({"records": [], "last_physical_to_logical_map": maps}, tmp_path / "recording.pt")
    assert kind_of(tmp_path / "recording.pt").name == "torch-recording"  # type: ignore[union-attr]
    with pytest.raises(PluginError, match=r"recording\.pt: found no map"):
        read_torch_map(tmp_path / "recording.pt")
