"""The snapshot over several processes: sums, token-owner groups, the shared sample, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from eplb_plugin.errors import PluginError
from eplb_plugin.recording.recorder import Recorder
from eplb_plugin.recording.snapshot import snapshot
from eplb_plugin.statistics import RoutingStatistics
from processes import run_ranks
from recorded import route_layer

LAYERS, EXPERTS, TOP_K, SAMPLE = 2, 8, 3, 17  # ids of two ranks meet in one 64-bit number, and the last is not full
LAYER_IDS = [3, 7]
WINDOWS = 3


def rows_of(owner: int, window: int) -> np.ndarray:
    """[tokens, L, K] that a token-owner group routes in a window; the groups have different numbers of tokens."""
    random = np.random.default_rng([owner, window])
    tokens = [5, 0, 30, 2][(owner + window) % 4]
    return np.argsort(random.random((tokens, LAYERS, EXPERTS)), axis=2)[:, :, :TOP_K]


def record(recorder: Recorder, rows: np.ndarray) -> None:
    for step in np.array_split(rows, 3):
        recorder.expect([len(step)])
        for layer in range(LAYERS):
            route_layer(recorder, layer, step[:, layer])
        recorder.fold()


def new_recorder() -> Recorder:
    return Recorder(LAYERS, EXPERTS, TOP_K, 32, SAMPLE, torch.device("cpu"))


def record_windows(owner_group_size: int, unequal_rank: int | None) -> list[Any]:
    """On every rank: per window the statistics as plain arrays, None, or the refusal."""
    rank, group = dist.get_rank(), dist.group.WORLD
    recorder = new_recorder()
    results: list[Any] = []
    for window in range(WINDOWS):
        record(recorder, rows_of(rank // owner_group_size, window))
        if window == 1 and rank == unequal_rank:
            record(recorder, np.zeros((1, LAYERS, TOP_K), np.int64))
        try:
            found = snapshot(recorder, group, owner_group_size, LAYER_IDS)
        except PluginError as error:
            results.append(str(error))
        else:
            results.append(found and {name: getattr(found, name) for name in vars(found)})
        assert recorder.num_tokens.item() == 0
        assert not recorder.load.any()
    return results


LAYOUTS = [(1, 1), (2, 1), (2, 2), (4, 1), (4, 2), (4, 4)]


@pytest.mark.parametrize(("ranks", "owner_group_size"), LAYOUTS)
def test_sums_over_token_owners(ranks: int, owner_group_size: int) -> None:
    """Every window is the sum over token-owner groups, each counted once, on rank 0 and nowhere else."""
    results = run_ranks(ranks, record_windows, owner_group_size, None)
    assert results[1:] == [[None] * WINDOWS] * (ranks - 1)
    owners = ranks // owner_group_size
    for window, found in enumerate(results[0]):
        routed = [rows_of(owner, window) for owner in range(owners)]
        expected = RoutingStatistics.from_topk(np.concatenate(routed).transpose(1, 0, 2), EXPERTS)
        np.testing.assert_array_equal(found["load"], expected.load)
        np.testing.assert_array_equal(found["coactivation"], expected.coactivation)
        np.testing.assert_array_equal(found["num_tokens"], expected.num_tokens)
        np.testing.assert_array_equal(found["layer_ids"], LAYER_IDS)
        sample_is_fair(found["sample"], routed)


def sample_is_fair(sample: np.ndarray, routed: list[np.ndarray]) -> None:
    """Every owner has its part of the sample: the whole rows that it recorded last, the rest empty."""
    assert sample.shape == (LAYERS, SAMPLE, TOP_K)
    share = SAMPLE // len(routed)
    for owner, rows in enumerate(routed):
        part = sample[:, owner * share : (owner + 1) * share].transpose(1, 0, 2)
        newest = rows[-share:]
        np.testing.assert_array_equal(part[share - len(newest) :], newest)
        assert (part[: share - len(newest)] == -1).all()
    assert (sample[:, share * len(routed) :] == -1).all()


@pytest.mark.parametrize(("ranks", "owner_group_size", "unequal", "group"), [(2, 2, 1, 0), (4, 2, 2, 1), (4, 2, 3, 1)])
def test_unequal_owners_refused(ranks: int, owner_group_size: int, unequal: int, group: int) -> None:
    """If the ranks of a group did not record the same, rank 0 refuses that window by the group, and no rank hangs."""
    results = run_ranks(ranks, record_windows, owner_group_size, unequal)
    before, refused, after = results[0]
    assert refused.startswith(f"token-owner group {group}: found ranks that recorded different routing, expected 2")
    assert len(refused.splitlines()) == 1
    assert isinstance(before, dict)
    assert isinstance(after, dict)  # a refused window does not spoil the next
    assert results[1:] == [[None] * WINDOWS] * (ranks - 1)
