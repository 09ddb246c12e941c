"""A scheduler that begins where an earlier run ended: SGLang's own classes load by the kept placement."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eplb_plugin import Placement, RoutingStatistics, Topology
from eplb_plugin.deployment import Deployment
from eplb_plugin.placement import linear_placement
from eplb_plugin.runtime.state_directory import StateDirectory
from processes import run_ranks

from .schedulers import EXPERTS, LAYERS, MOE_LAYERS, REDUNDANT, TOP_K, Scheduler, Start, model_folder

RANKS, SLOTS = 2, EXPERTS + REDUNDANT
LINEAR = linear_placement(LAYERS, EXPERTS, SLOTS).phy2log
KEPT = Placement(np.stack([np.roll(LINEAR[0], layer) for layer in MOE_LAYERS]), MOE_LAYERS)
WINDOW = RoutingStatistics.from_topk(np.tile(np.arange(TOP_K), (len(MOE_LAYERS), 5, 1)), EXPERTS, MOE_LAYERS)


def keep(folder: Path, window: RoutingStatistics = WINDOW, placement: Placement = KEPT) -> dict[str, Any]:
    """Leave the files of an earlier run of the model in `folder`; the settings that name it."""
    topology = Topology(2, 1, SLOTS // RANKS)
    deployment = Deployment(str(folder), "sglang", "mixed", topology, EXPERTS, tuple(MOE_LAYERS))
    state = StateDirectory(folder / "state")
    placement.save(state.placement_file(deployment), deployment.placement_header())
    window.save(state.window_file(deployment), deployment.header())
    return {"topology": {"nodes": 2}, "sample_rows": 256, "state_directory": str(folder / "state")}


def begin(start: Start) -> tuple[np.ndarray, bool, int]:
    """The map that the model is loaded by, whether its weights lie so, and the windows that are known; or what ended
    the start."""
    from eplb_plugin.engines.sglang.state import get_adapter

    scheduler = Scheduler(start)
    windows = len(get_adapter().rebalancer.entries["target"].history._windows)
    return scheduler.metadata.physical_to_logical_map_cpu.numpy().copy(), scheduler.weights_are_right(), windows


def begun(folder: Path, settings: dict[str, Any], **options: Any) -> list[tuple[np.ndarray, bool, int]]:
    return run_ranks(RANKS, begin, Start(model_folder(folder), [settings] * RANKS, options), timeout=300)


def test_the_model_is_loaded_by_the_kept_placement(tmp_path: Path) -> None:
    """On every rank; the dense layer lies as SGLang lays it, and rank 0 knows the window."""
    expected = LINEAR.copy()
    expected[MOE_LAYERS] = KEPT.phy2log
    answers = begun(tmp_path, keep(tmp_path))
    for placed, weights_right, _ in answers:
        np.testing.assert_array_equal(placed, expected)
        assert weights_right
    assert [windows for *_, windows in answers] == [1, 0]


def test_what_sglang_is_told_goes_before_it(tmp_path: Path) -> None:
    """--init-expert-location is the user's; the window is still known."""
    told = LINEAR[:, ::-1].copy()
    options = {"init_expert_location": json.dumps({"physical_to_logical_map": told.tolist()})}
    answers = begun(tmp_path, keep(tmp_path), **options)
    for placed, _, _ in answers:
        np.testing.assert_array_equal(placed, told)
    assert answers[0][2] == 1


@pytest.mark.parametrize("layer_ids", [[1, 2, 7], [1, 2]], ids=["a layer too many", "a layer missing"])
def test_what_does_not_fit_is_left_alone(tmp_path: Path, layer_ids: list[int]) -> None:
    """Kept of a model of other layers: no placement beyond the last layer, no window of others."""
    rows = KEPT.phy2log[: len(layer_ids)]
    window = RoutingStatistics(WINDOW.load[: len(layer_ids)], layer_ids=np.array(layer_ids, np.int32))
    answers = begun(tmp_path, keep(tmp_path, window, Placement(rows, layer_ids)))
    expected = LINEAR.copy()
    if max(layer_ids) < LAYERS:
        expected[layer_ids] = rows
    for placed, weights_right, windows in answers:
        np.testing.assert_array_equal(placed, expected)
        assert weights_right
        assert windows == 0


def refused(start: Start) -> int | str | None:
    try:
        begin(start)
    except SystemExit as end:
        return end.code
    return None


@pytest.mark.parametrize("options", [{}, {"init_expert_location": "also named"}])
def test_a_named_placement_that_does_not_fit_ends_the_start(tmp_path: Path, options: dict[str, Any]) -> None:
    """Every rank ends with code 2: of another shape, or beside SGLang's own flag."""
    settings = keep(tmp_path)
    named = tmp_path / "named.safetensors"
    (KEPT if options else linear_placement(3, EXPERTS, SLOTS + 2, MOE_LAYERS)).save(named)
    if options:
        options = {"init_expert_location": json.dumps({"physical_to_logical_map": LINEAR.tolist()})}
    start = Start(model_folder(tmp_path), [{**settings, "initial_placement": str(named)}] * RANKS, options)
    assert run_ranks(RANKS, refused, start, timeout=300) == [2, 2]
