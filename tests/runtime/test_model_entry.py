"""What the Rebalancer knows of a model, as others are told it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eplb_plugin import Placement, PluginError, Topology
from eplb_plugin.deployment import Deployment
from eplb_plugin.placement import linear_placement
from eplb_plugin.planning.planner import plan_of
from eplb_plugin.recording.recorder import Recorder
from eplb_plugin.runtime.model_entry import ModelEntry
from eplb_plugin.runtime.warm_up import Planned

TOPOLOGY = Topology(2, 1, 3)
PLACED = linear_placement(2, 4, 6, [1, 3])


def entry(recorder: Recorder | None = None) -> ModelEntry:
    return ModelEntry("m", TOPOLOGY, "affinity", "weighted", 4, 1, [1, 3], recorder, engine="vllm", phase="decode")


def test_the_plan_in_force_is_the_agreed_one_while_experts_lie_so() -> None:
    """With its weights; a placement that came about otherwise is used evenly, and one that does not fit is refused."""
    one = entry()
    even = one.in_force(PLACED)
    assert (even.dispatch, even.source_weights) == ("weighted", None)
    agreed = plan_of(PLACED, TOPOLOGY, "weighted")
    one.plan = agreed
    assert one.in_force(Placement(PLACED.phy2log.copy(), [1, 3])) is agreed
    other = Placement(PLACED.phy2log[:, ::-1].copy(), [1, 3])
    assert one.in_force(other) is not agreed
    assert one.in_force(other).placement is other
    with pytest.raises(PluginError, match="placement slots: found 8"):
        one.in_force(linear_placement(2, 4, 8, [1, 3]))


def test_its_files_and_its_kernels() -> None:
    """The deployment that names its files; top-k of what is recorded, none for a draft."""
    assert entry().deployment == Deployment("m", "vllm", "decode", TOPOLOGY, 4, (1, 3))
    recorder = Recorder(2, 4, 3, 16, 64, torch.device("cpu"))
    assert entry(recorder).planned == Planned(TOPOLOGY, "affinity", "weighted", 4, 1, 3)
    assert entry().planned.top_k == 0


def test_its_introduction_is_one_line() -> None:
    """What will be planned, for which layout, and the memory it takes."""
    one = entry(Recorder(2, 4, 3, 1 << 14, 64, torch.device("cpu")))
    one.table_bytes = 3 << 19
    line = one.introduction(1.25)
    assert "\n" not in line
    assert line.startswith("m: 2 MoE layers, 4 experts in 6 slots on 2 nodes x 1 ranks, policy affinity, dispatch weig")
    size = np.round(one.recorder.nbytes() / 2**20, 1)  # type: ignore[union-attr]
    assert size > 0
    assert f"{size} MiB of recording buffers and 1.5 MiB of tables per rank, planner ready in 1.2 s" in line
    assert "0.0 MiB of recording" in entry().introduction(0.0)
