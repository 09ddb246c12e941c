"""A restart over several processes: every rank begins where the earlier run ended, or none does."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from eplb_plugin.errors import PluginError
from eplb_plugin.placement import Placement, linear_placement
from eplb_plugin.recording.recorder import Recorder
from eplb_plugin.runtime.model_entry import ModelEntry
from eplb_plugin.runtime.rebalancer import Rebalancer
from eplb_plugin.settings.config import parse_config
from eplb_plugin.topology import Topology
from processes import run_ranks
from recorded import route_layer

EXPERTS, SLOTS, LAYER_IDS, TOKENS = 8, 12, [2, 5], 64
OLD = linear_placement(2, EXPERTS, SLOTS).phy2log
FILE = "some-moe.mixed.placement.safetensors"


def begin(settings: dict[str, Any], recorder: bool = True) -> tuple[Rebalancer, ModelEntry, bool]:
    """A server that starts: its Rebalancer, its model, and whether a placement waits for the first rebalance."""
    rebalancer = Rebalancer(parse_config({"policy": "balanced", **settings}, ""))
    entry = ModelEntry(
        "some-moe", Topology(2, 1, SLOTS // 2), "balanced", "hash", EXPERTS, 1, LAYER_IDS,
        Recorder(2, EXPERTS, 2, TOKENS, 256, torch.device("cpu")) if recorder else None, engine="vllm",
    )  # fmt: skip
    rebalancer.add("key", entry, planning_rank=dist.get_rank() == 0)
    return rebalancer, entry, rebalancer.resume("key", dist.group.WORLD)


def rebalance(rebalancer: Rebalancer, entry: ModelEntry, placed: np.ndarray) -> np.ndarray:
    """One window of tokens that mostly want experts 0 and 1, and what is decided after it."""
    assert entry.recorder is not None
    draw = np.random.default_rng(dist.get_rank())
    entry.recorder.expect([TOKENS])
    for layer in range(2):
        ids = np.argsort(draw.exponential(size=(TOKENS, EXPERTS)) * np.arange(1, EXPERTS + 1), axis=1)[:, :2]
        route_layer(entry.recorder, layer, ids)
    entry.recorder.fold()
    rebalancer.observe("key", dist.group.WORLD)
    return rebalancer.decide("key", placed.copy(), dist.group.WORLD).placement.phy2log


def run_and_restart(folder: str) -> tuple[np.ndarray, np.ndarray, bool, int]:
    """What the first run served with, where the second begins, whether it was told to, and the windows it knows."""
    rebalancer, entry, resumes = begin({"state_directory": folder})
    assert not resumes
    first = rebalance(rebalancer, entry, OLD)
    rebalance(rebalancer, entry, first)  # the first has served by now, and is kept
    if dist.get_rank() == 0:
        while not (Path(folder) / FILE).exists() or (rebalancer._state and not rebalancer._state.idle):
            time.sleep(0.01)
    dist.barrier()
    rebalancer, entry, resumes = begin({"state_directory": folder})
    windows = len(entry.history._windows)
    begun = rebalance(rebalancer, entry, OLD)
    assert entry.first is None or dist.get_rank() != 0
    later = rebalance(rebalancer, entry, begun)
    assert later.shape == begun.shape
    return first, begun, resumes, windows


def test_a_restart_begins_where_the_run_ended(tmp_path: Path) -> None:
    """The placement that had served is the first rebalance's, on every rank; rank 0 knows the window too."""
    results = run_ranks(2, run_and_restart, str(tmp_path), timeout=300)
    for first, begun, resumes, _ in results:
        assert resumes
        assert (first != OLD).any()
        np.testing.assert_array_equal(begun, first)
    assert [windows for *_, windows in results] == [1, 0]


def begin_with(path: str, state: str | None = None, recorder: bool = True) -> tuple[bool | str, np.ndarray | None]:
    try:
        rebalancer, entry, resumes = begin({"initial_placement": path, "state_directory": state}, recorder)
    except PluginError as error:
        return str(error), None
    if not resumes:
        return False, None
    return True, rebalance(rebalancer, entry, OLD)


def test_a_named_placement_is_begun_with(tmp_path: Path) -> None:
    """Without any statistics; the settings name it, so that it also goes before what an earlier run left."""
    wanted, kept = OLD[:, ::-1].copy(), np.roll(OLD, 1, axis=1)
    Placement(wanted, LAYER_IDS).save(tmp_path / "named.safetensors")
    Placement(kept, LAYER_IDS).save(tmp_path / FILE)
    for resumes, placed in run_ranks(2, begin_with, str(tmp_path / "named.safetensors"), str(tmp_path), timeout=300):
        assert resumes is True
        np.testing.assert_array_equal(placed, wanted)


@pytest.mark.parametrize(
    ("placement", "line"),
    [
        (None, "named.safetensors: cannot be read as a placement file"),
        (linear_placement(2, EXPERTS, 14, LAYER_IDS), "named.safetensors: slots: found 14, expected 12"),
        (linear_placement(2, 7, 12, LAYER_IDS), "named.safetensors: experts: found 7, expected 8"),
        (linear_placement(2, EXPERTS, 12, [2, 6]), "named.safetensors: layers: found [2, 6], expected [2, 5]"),
    ],
    ids=["missing", "slots", "experts", "layers"],
)
def test_a_named_placement_that_does_not_fit_ends_the_start(
    tmp_path: Path, placement: Placement | None, line: str
) -> None:
    """On every rank, with one line."""
    path = tmp_path / "named.safetensors"
    if placement is not None:
        placement.save(path)
    for problem, _ in run_ranks(2, begin_with, str(path), timeout=300):
        assert isinstance(problem, str)
        assert problem.startswith("initial_placement: ")
        assert line in problem
        assert "; fix: " in problem


def test_a_stale_file_never_ends_a_start(tmp_path: Path) -> None:
    """A kept placement of another shape is left alone on every rank."""
    linear_placement(2, EXPERTS, 14, LAYER_IDS).save(tmp_path / FILE)
    for _, entry_first, resumes in run_ranks(2, begin_stale, str(tmp_path), timeout=300):
        assert not resumes
        assert entry_first is None


def begin_stale(folder: str) -> tuple[None, Placement | None, bool]:
    _, entry, resumes = begin({"state_directory": folder})
    return None, entry.first, resumes


def test_the_named_placement_is_not_the_drafts(tmp_path: Path) -> None:
    """A draft model has layers of its own."""
    Placement(OLD, LAYER_IDS).save(tmp_path / "named.safetensors")
    answers = run_ranks(2, begin_with, str(tmp_path / "named.safetensors"), None, False, timeout=300)
    assert [resumes for resumes, _ in answers] == [False, False]
