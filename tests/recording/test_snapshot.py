"""The snapshot over several processes: sums, token-owner groups, the shared sample, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

import nccl_rules
import simulated_device as sim
import simulated_launch
from eplb_plugin.errors import PluginError
from eplb_plugin.recording import snapshot as snapshots
from eplb_plugin.recording.kept_steps import KeptSteps
from eplb_plugin.recording.recorder import Recorder
from eplb_plugin.recording.snapshot import snapshot
from eplb_plugin.statistics import RoutingStatistics
from expert_models import Log
from processes import run_ranks
from recorded import Reference, route_layer, spoiled

LAYERS, EXPERTS, TOP_K, SAMPLE = 2, 8, 3, 17  # ids of two ranks meet in one 64-bit number, and the last is not full
LAYER_IDS = [3, 7]
WINDOWS = 3


def rows_of(owner: int, window: int) -> np.ndarray:
    """[tokens, L, K] that a token-owner group routes in a window; the groups have different numbers of tokens.

    Some rows are such as no router makes.
    """
    random = np.random.default_rng([owner, window])
    tokens = [5, 0, 30, 2][(owner + window) % 4]
    return spoiled(random, np.argsort(random.random((tokens, LAYERS, EXPERTS)), axis=2)[:, :, :TOP_K], EXPERTS)


def counted(routed: list[np.ndarray]) -> RoutingStatistics:
    rows = np.concatenate(routed).transpose(1, 0, 2)
    return RoutingStatistics.from_topk(np.where(rows < EXPERTS, rows, -1), EXPERTS)


def record(recorder: Recorder, rows: np.ndarray) -> None:
    for step in np.array_split(rows, 3):
        recorder.expect([len(step)])
        for layer in range(LAYERS):
            route_layer(recorder, layer, step[:, layer])
        recorder.fold()


def new_recorder(device: str | torch.device = "cpu") -> Recorder:
    return Recorder(LAYERS, EXPERTS, TOP_K, 32, SAMPLE, torch.device(device))


def accelerator() -> tuple[Any, torch.device]:
    """In this process, for good: a group under NCCL's rules, and the simulated device."""
    device = nccl_rules.install()
    simulated_launch.install()
    return dist.new_group(backend="nccl_rules"), device


def record_windows(owner_group_size: int, unequal_rank: int | None, on_a_device: bool = False) -> list[Any]:
    """On every rank: per window the statistics as plain arrays, None, or the refusal."""
    rank = dist.get_rank()
    group, device = accelerator() if on_a_device else (dist.group.WORLD, "cpu")
    recorder = new_recorder(device)
    results: list[Any] = []
    for window in range(WINDOWS):
        record(recorder, rows_of(rank // owner_group_size, window))
        if window == 1 and rank == unequal_rank:
            record(recorder, np.tile(np.arange(TOP_K), (1, LAYERS, 1)))
        try:
            found = snapshot(recorder, group, owner_group_size, LAYER_IDS)
        except PluginError as error:
            results.append(str(error))
        else:
            results.append(found and {name: getattr(found, name) for name in vars(found)})
        assert recorder.num_tokens.item() == 0
        assert not recorder.load.any()
    assert sim.counts.faults == []
    return results


LAYOUTS = [(1, 1, False), (2, 1, False), (2, 2, False), (4, 1, False), (4, 2, True), (4, 4, False)]


@pytest.mark.parametrize(("ranks", "owner_group_size", "on_a_device"), LAYOUTS)
def test_sums_over_token_owners(ranks: int, owner_group_size: int, on_a_device: bool) -> None:
    """Every window is the sum over token-owner groups, each counted once, on rank 0 and nowhere else; and it is what
    `from_topk` counts of the same rows.
    """
    results = run_ranks(ranks, record_windows, owner_group_size, None, on_a_device)
    assert results[1:] == [[None] * WINDOWS] * (ranks - 1)
    owners = ranks // owner_group_size
    for window, found in enumerate(results[0]):
        routed = [rows_of(owner, window) for owner in range(owners)]
        expected = counted(routed)
        np.testing.assert_array_equal(found["load"], expected.load)
        np.testing.assert_array_equal(found["coactivation"], expected.coactivation)
        np.testing.assert_array_equal(found["num_tokens"], expected.num_tokens)
        np.testing.assert_array_equal(found["left_out"], expected.left_out)
        np.testing.assert_array_equal(found["layer_ids"], LAYER_IDS)
        np.testing.assert_array_equal(found["steps"], step_loads(routed))
        sample_is_fair(found["sample"], routed)


def step_loads(routed: list[np.ndarray]) -> np.ndarray:
    """[S, L, E] of the steps in which any owner had a token."""
    steps = zip(*(np.array_split(rows, 3) for rows in routed), strict=True)
    loads = np.stack([counted(list(step)).load for step in steps])
    return loads[loads.any(axis=(1, 2))]


def sample_is_fair(sample: np.ndarray, routed: list[np.ndarray]) -> None:
    """Every owner has its part of the sample: the whole rows that it recorded last, the rest empty."""
    assert sample.shape == (LAYERS, SAMPLE, TOP_K)
    share = SAMPLE // len(routed)
    for owner, given in enumerate(routed):
        rows = np.array(Reference(LAYERS, EXPERTS, TOP_K, SAMPLE, list(given)).kept).reshape(-1, LAYERS, TOP_K)
        part = sample[:, owner * share : (owner + 1) * share].transpose(1, 0, 2)
        newest = rows[-share:]
        np.testing.assert_array_equal(part[share - len(newest) :], newest)
        assert (part[: share - len(newest)] == -1).all()
    assert (sample[:, share * len(routed) :] == -1).all()


@pytest.mark.parametrize(("ranks", "owner_group_size", "unequal", "group"), [(2, 2, 1, 0), (4, 2, 2, 1), (4, 2, 3, 1)])
def test_unequal_owners_refused(ranks: int, owner_group_size: int, unequal: int, group: int) -> None:
    """If the ranks of a group did not record the same, rank 0 refuses that window by the group, and no rank hangs."""
    results = run_ranks(ranks, record_windows, owner_group_size, unequal, unequal == 3)
    before, refused, after = results[0]
    assert refused.startswith(f"token-owner group {group}: found ranks that recorded different routing, expected 2")
    assert len(refused.splitlines()) == 1
    assert isinstance(before, dict)
    assert isinstance(after, dict)  # a refused window does not spoil the next
    assert results[1:] == [[None] * WINDOWS] * (ranks - 1)


def one_token_apart() -> tuple[dict[str, Any] | None, list[str]]:
    """The second of two owners routes one of 300 tokens elsewhere, in both layers."""
    recorder, rank = Recorder(LAYERS, EXPERTS, TOP_K, 512, 512, torch.device("cpu")), dist.get_rank()
    rows = np.argsort(np.random.default_rng(0).random((300, LAYERS, EXPERTS)), axis=2)[:, :, :TOP_K]
    if rank == 1:
        rows[77] = (rows[77] + 1) % EXPERTS
    recorder.expect([300])
    for layer in range(LAYERS):
        route_layer(recorder, layer, rows[:, layer])
    recorder.fold()
    own = recorder.load.numpy().copy()
    with Log() as log:
        found = snapshot(recorder, dist.group.WORLD, 2, LAYER_IDS)
    return None if found is None else {"load": found.load, "own": own}, log.lines


def test_a_token_that_owners_route_differently_is_tolerated() -> None:
    """As rounding makes it: the first one's counts are used, and a warning says so."""
    (found, lines), (nothing, silent) = run_ranks(2, one_token_apart)
    assert nothing is None
    assert silent == []
    assert found is not None
    np.testing.assert_array_equal(found["load"], found["own"])
    assert len(lines) == 1
    assert lines[0].startswith("token-owner group 0: its ranks route a few tokens")


def long_window(lost: int) -> tuple[RoutingStatistics | None, list[str]]:
    """200 steps, of which one rank is idle in every second one; and one that the last rank does not take part in."""
    recorder, rank = new_recorder(), dist.get_rank()
    for step in range(200 - lost * rank):
        if rank and step % 2:
            recorder.skip()
            continue
        recorder.expect([1])
        for layer in range(LAYERS):
            route_layer(recorder, layer, np.array([[step % EXPERTS]]))
        recorder.fold()
    with Log() as log:
        return snapshot(recorder, dist.group.WORLD, 1, LAYER_IDS), log.lines


def test_ranks_keep_the_same_steps_of_a_long_window() -> None:
    """Idle in some of them or not; they come in order of time."""
    (found, lines), (nothing, _) = run_ranks(2, long_window, 0)
    assert nothing is None
    assert lines == []
    assert found is not None
    kept = KeptSteps(1, 1, torch.device("cpu"))
    for _ in range(200):
        kept.add(None)
    assert found.steps is not None
    for number, load in zip(sorted(kept.numbers), found.steps, strict=True):
        expected = np.zeros(EXPERTS)
        expected[number % EXPERTS] = 1 if number % 2 else 2
        np.testing.assert_array_equal(load, np.tile(expected, (LAYERS, 1)))


def test_steps_that_ranks_number_differently_are_not_used() -> None:
    """The sums would be of different ones; a line says so, and the window is used without them."""
    (found, lines), _ = run_ranks(2, long_window, 1)
    assert found is not None
    assert found.load.sum() > 0
    assert found.steps is None
    assert lines == ["single steps of this window are not used: ranks counted 199 to 200 of them"]


def out_of_memory(rank: int, message: str | None) -> list[Any]:
    """Of two windows, in the first of which one rank cannot have what it asks for."""
    recorder, results = new_recorder(), []
    empty = snapshots.torch.empty

    def fails(*args: Any, **kwargs: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("no more") if message is None else RuntimeError(message)

    for window in range(2):
        record(recorder, rows_of(dist.get_rank(), window))
        snapshots.torch.empty = fails if window == 0 and dist.get_rank() == rank else empty
        try:
            found = snapshot(recorder, dist.group.WORLD, 1, LAYER_IDS)
            results.append(None if found is None else int(found.load.sum()))
        except PluginError as error:
            results.append(str(error))
        finally:
            snapshots.torch.empty = empty
        assert not recorder.load.any()
    return results


@pytest.mark.parametrize(("rank", "message"), [(0, None), (1, None), (1, "CUDA error: out of memory")])
def test_without_memory_it_is_refused_on_every_rank(rank: int, message: str | None) -> None:
    """No rank ends, none waits for one that gave up, and the next window is a whole one."""
    results = run_ranks(2, out_of_memory, rank, message)
    for own, (refused, _) in enumerate(results):
        assert refused.startswith("memory for a snapshot: found none for it on")
        assert ("this rank (" in refused) == (own == rank)
    assert [after for _, after in results] == [counted([rows_of(owner, 1) for owner in range(2)]).load.sum(), None]


def v3_sized() -> tuple[int, int]:
    """Bytes that a snapshot takes at its peak, beside the recorder's own, and the sum of what it found."""
    group, device = accelerator()
    recorder = Recorder(58, 256, 8, 8, 8192, device)
    sim.host_view(recorder.load).fill_(3)
    sim.host_view(recorder.pairs).copy_(torch.full((257, 257), 3).triu())
    sim.host_view(recorder.num_tokens).fill_(9)
    before = sim.counts.allocated
    sim.counts.reset()
    found = snapshot(recorder, group, 1, list(range(58)))
    assert found is not None
    assert (found.coactivation == 3).all()
    assert sim.counts.faults == []
    return sim.counts.peak - before, int(found.load.sum())


def test_its_memory_is_bounded_at_the_size_of_deepseek_v3() -> None:
    """58 layers of 256 experts, a sample of 8,192 rows: at most 32 MiB beside the recorder, at any moment."""
    ((peak, load),) = run_ranks(1, v3_sized, timeout=300.0)
    assert load == 58 * 256 * 3
    assert 8 << 20 < peak <= 32 << 20
