"""The plugin in schedulers of two ranks: SGLang's own configuration, routers, recorder, EPLB manager and updater.

No server and no GPU: with an all-to-all backend only the dispatcher is stood in for. What real servers do is tested in
tests/sglang.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eplb_plugin import Placement, RoutingStatistics, route
from processes import run_ranks

from .schedulers import EXPERTS, LAYERS, MOE_LAYERS, ON_CPU, REDUNDANT, TOP_K, Scheduler, Start, model_folder

RANKS, PASSES, TOKENS, FAILING = 2, 22, 6, 2
SETTINGS = {"topology": {"nodes": 2}, "sample_rows": 256}
SLOTS = EXPERTS + REDUNDANT
DEEPEP = {"moe_a2a_backend": "deepep"}


def routed(rank: int, step: int, shared: bool) -> np.ndarray:
    """[MoE layers, T, K] logical experts of a pass; every rank routes its own tokens unless they are shared."""
    random = np.random.default_rng([0 if shared else rank, step])
    skew = np.linspace(0.2, 1, EXPERTS)
    return np.argsort(random.random((len(MOE_LAYERS), TOKENS, EXPERTS)) * skew, axis=2)[:, :, :TOP_K]


@dataclass
class Seen:
    """Of one rank. rebalances, maps [L, P], plans (digests of those in force): after every pass.

    statistics: rebalance -> what it was planned from. weighted_passes: those in which tables made of weights were used.
    """

    first_map: np.ndarray
    rebalances: list[int]
    maps: list[np.ndarray]
    weights_right: bool
    addresses_kept: bool
    statistics: dict[int, dict[str, np.ndarray]]
    gatherer: str
    table: np.ndarray | None
    plans: list[str] = field(default_factory=list)
    weighted_passes: int = 0


def live(start: Start, shared: bool) -> Seen:
    """Passes of the target, each with one of a draft before it; rebalance number FAILING finds a planner that fails."""
    import eplb_plugin.controller as controller
    from eplb_plugin.engines.sglang.state import get_adapter

    scheduler = Scheduler(start)
    adapter, metadata = get_adapter(), scheduler.metadata
    entry, plan = adapter.rebalancer.entries["target"], controller.plan

    def failing_once(*args: Any, **kwargs: Any) -> Any:
        if entry.rebalances + 1 == FAILING:
            raise RuntimeError("no plan today")
        return plan(*args, **kwargs)

    controller.plan = failing_once
    addresses = [metadata.physical_to_logical_map.data_ptr(), *(one.data_ptr() for one in vars(entry.recorder).values()
                 if hasattr(one, "data_ptr"))]  # fmt: skip
    (gatherer,) = scheduler.recorder._single_pass_gatherers.values()
    first = metadata.physical_to_logical_map_cpu.numpy().copy()
    seen = Seen(first, [], [], True, True, {}, type(gatherer).__name__, None)
    scheduler.route(np.tile(routed(scheduler.rank, 2000, shared), (1, 3, 1)))  # a warm-up, outside any pass
    for step in range(PASSES):
        with scheduler.running(2 * TOKENS), scheduler.recorder.disable_this_region():
            scheduler.route(np.tile(routed(scheduler.rank, 1000 + step, shared), (1, 2, 1)))
        if step == 2:
            scheduler.recorder.dump_record()  # what HTTP asks for: a file, and a window of SGLang's that starts anew
        settled = len(set(seen.rebalances[-3:])) < 2  # in chunks, rows follow the plan layer by layer
        expected = planned_routes(scheduler.rank, adapter._tables) if settled else None
        scheduler.forward(routed(scheduler.rank, step, shared), batches=1 + step % len(entry.recorder.stage))
        for layer, (logical, physical) in enumerate(scheduler.routed):
            if expected is not None:
                np.testing.assert_array_equal(np.sort(physical), np.sort(expected(logical, layer)))
                seen.weighted_passes += bool(adapter._tables.plan.has_weights)
        if entry.history._windows and entry.rebalances not in seen.statistics:
            seen.statistics[entry.rebalances] = dict(vars(entry.history._windows[-1]))
        seen.rebalances.append(entry.rebalances)
        seen.maps.append(metadata.physical_to_logical_map_cpu.numpy().copy())
        seen.plans.append(adapter._tables.plan.digest if adapter._tables else "")
        seen.weights_right &= scheduler.weights_are_right()
    now = [metadata.physical_to_logical_map.data_ptr(), *(one.data_ptr() for one in vars(entry.recorder).values()
           if hasattr(one, "data_ptr"))]  # fmt: skip
    seen.addresses_kept = now == addresses
    if metadata.logical_to_rank_dispatch_physical_map is not None:
        seen.table = metadata.logical_to_rank_dispatch_physical_map.numpy()
    return seen


def planned_routes(rank: int, tables: Any) -> Callable[[np.ndarray, int], np.ndarray] | None:
    """`route` of the plan in force from this rank; None where none is, or where a row is not its placement's."""
    if tables is None or not np.array_equal(tables.placed, tables.plan.placement.phy2log):
        return None
    shared = len(tables.owners) > 1  # a group on several nodes is near to none
    plan = replace(tables.plan, source_weights=None) if shared else tables.plan
    return lambda logical, layer: route(logical, 0 if shared else rank, plan, layer)


@dataclass(frozen=True)
class Case:
    """shared: all ranks route the same tokens. start: the initial placement. window: passes that a window holds.
    rule: of the plugin's settings.
    """

    name: str
    options: dict[str, Any]
    shared: bool
    gatherer: str
    start: str = "trivial"
    window: int = 100
    rule: str = "auto"
    settings: tuple[bool, bool] = (True, True)


CASES = (
    Case("no all-to-all", {}, True, "_SelectExpertsSinglePassGatherer", settings=(True, False)),
    Case("DeepEP normal", {**DEEPEP, "deepep_mode": "normal", "eplb_rebalance_layers_per_chunk": 2,
          "enable_two_batch_overlap": True}, False,
         "_SelectExpertsSinglePassGatherer", start="placement"),
    Case("DeepEP normal, approximate",
         {**DEEPEP, "deepep_mode": "normal", "expert_distribution_recorder_mode": "stat_approx"}, False,
         "_DeepepNormalSinglePassGatherer", start="counts", rule="nearest"),
    Case("DeepEP low latency",
         {**DEEPEP, "deepep_mode": "low_latency", "expert_distribution_recorder_buffer_size": 2}, False,
         "_DeepepLowLatencySinglePassGatherer", window=2),
)  # fmt: skip


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


def start_placement() -> Placement:
    rows = np.random.default_rng(7).permuted(np.tile(np.arange(SLOTS) % EXPERTS, (len(MOE_LAYERS), 1)), axis=1)
    return Placement(rows, np.array(MOE_LAYERS))


@pytest.fixture(scope="module")
def seen(case: Case, tmp_path_factory: pytest.TempPathFactory) -> list[Seen]:
    folder = tmp_path_factory.mktemp("life")
    options = dict(case.options)
    if case.start == "placement":
        start_placement().export("sglang", folder / "start.json", LAYERS)
        options["init_expert_location"] = str(folder / "start.json")
    elif case.start == "counts":
        load = np.arange(LAYERS * EXPERTS).reshape(LAYERS, EXPERTS) * (np.arange(LAYERS) > 0)[:, None]
        (folder / "counts.json").write_text(json.dumps({"logical_count": load.tolist()}))
        options["init_expert_location"] = str(folder / "counts.json")
    settings = [SETTINGS | {"dispatch": case.rule} if given else None for given in case.settings]
    return run_ranks(RANKS, live, Start(model_folder(folder), settings, options), case.shared, timeout=400)


def test_the_gatherer_is_the_one_meant(case: Case, seen: list[Seen]) -> None:
    """SGLang counts in three ways, one of which sees no ids; recording works with each."""
    assert {one.gatherer for one in seen} == {case.gatherer}


def test_statistics_are_what_was_routed(case: Case, seen: list[Seen]) -> None:
    """Logical ids, every token once, on the planning rank only; no padding, draft or warm-up, all micro-batches."""
    assert seen[1].statistics == {}
    assert len(seen[0].statistics) >= 3
    counts = seen[0].rebalances
    for number, found in seen[0].statistics.items():
        last = counts.index(number)
        since = counts.index(number - 1) + 1 if number > 1 else 0
        steps = range(max(since, last + 1 - case.window), last + 1)
        if number == 1 and case.window < 100:
            steps = range(last - case.window, last + 1)  # the first interval of SGLang has one pass more
        owners = [0] if case.shared else range(RANKS)
        rows = np.concatenate([routed(rank, step, case.shared) for step in steps for rank in owners], axis=1)
        expected = RoutingStatistics.from_topk(rows, EXPERTS, MOE_LAYERS)
        np.testing.assert_array_equal(found["load"], expected.load)
        np.testing.assert_array_equal(found["coactivation"], expected.coactivation)
        np.testing.assert_array_equal(found["num_tokens"], expected.num_tokens)
        np.testing.assert_array_equal(found["layer_ids"], MOE_LAYERS)


def test_ranks_hold_what_the_map_says(seen: list[Seen]) -> None:
    """After every pass the maps of all ranks are equal and every slot holds its expert's weights; nothing is moved."""
    for one, other in zip(*(one.maps for one in seen), strict=True):
        np.testing.assert_array_equal(one, other)
    assert all(one.weights_right and one.addresses_kept for one in seen)


def test_placements_change_and_dense_layers_do_not(seen: list[Seen]) -> None:
    """Every rebalance that plans repairs the placement in force; the dense layer keeps its row."""
    maps = [seen[0].first_map, *seen[0].maps]
    assert not np.array_equal(maps[0][MOE_LAYERS], maps[-1][MOE_LAYERS])
    for layer in set(range(LAYERS)) - set(MOE_LAYERS):
        assert all(np.array_equal(one[layer], maps[0][layer]) for one in maps)


def test_a_failing_planner_leaves_the_placement(case: Case, seen: list[Seen]) -> None:
    """The old placement stays, on every rank, and the next rebalance plans again."""
    counts = seen[0].rebalances
    failed, chunks = counts.index(FAILING), 2 if "eplb_rebalance_layers_per_chunk" in case.options else 0
    before, after = seen[0].maps[failed - 1], seen[0].maps[failed + chunks]
    np.testing.assert_array_equal(before, after)
    assert not np.array_equal(after, seen[0].maps[-1])


def test_layers_move_chunk_by_chunk(case: Case, seen: list[Seen]) -> None:
    """With --eplb-rebalance-layers-per-chunk a pass moves at most so many layers."""
    chunk = case.options.get("eplb_rebalance_layers_per_chunk", LAYERS)
    maps = [seen[0].first_map, *seen[0].maps]
    moved = [int((one != other).any(1).sum()) for one, other in itertools.pairwise(maps)]
    assert 0 < max(moved) <= chunk


def test_initial_placement(case: Case, seen: list[Seen]) -> None:
    """SGLang starts from a placement that we exported, or from counts that the planner places."""
    trivial = np.arange(SLOTS) % EXPERTS
    if case.start == "placement":
        np.testing.assert_array_equal(seen[0].first_map[MOE_LAYERS], start_placement().phy2log)
        np.testing.assert_array_equal(seen[0].first_map[0], trivial)
    elif case.start == "counts":
        copies = [np.bincount(row, minlength=EXPERTS) for row in seen[0].first_map[MOE_LAYERS]]
        assert all(one[-1] > 1 and one[0] == 1 for one in copies)  # the busiest expert is copied, the idlest not
    else:
        np.testing.assert_array_equal(seen[0].first_map, np.tile(trivial, (LAYERS, 1)))


def test_every_rank_has_its_own_dispatch_table(case: Case, seen: list[Seen]) -> None:
    """`static`: for every expert a slot that holds it, on the own rank where there is one."""
    for rank, one in enumerate(seen):
        if case.shared:
            assert one.table is None
            continue
        assert one.table is not None
        held = np.take_along_axis(one.maps[-1], one.table, 1)
        np.testing.assert_array_equal(held, np.tile(np.arange(EXPERTS), (LAYERS, 1)))
        per_rank = SLOTS // RANKS
        own = one.maps[-1][:, rank * per_rank : (rank + 1) * per_rank]
        for layer in range(LAYERS):
            assert set(one.table[layer][np.unique(own[layer])] // per_rank) == {rank}


def test_tokens_go_where_route_says(case: Case, seen: list[Seen]) -> None:
    """By tables made of weights (compared in every pass that finds them whole); else SGLang chooses by itself."""
    assert all((one.weighted_passes > 5 * len(MOE_LAYERS)) == (case.rule == "auto") for one in seen)


def test_weights_are_renewed_between_rebalances(case: Case, seen: list[Seen]) -> None:
    """Where a window leaves room for it: on the same pass on all ranks, and no expert moves."""
    assert seen[0].plans == seen[1].plans
    first, renewed = seen[0], 0
    for step in range(1, PASSES):
        if first.plans[step] != first.plans[step - 1] and first.rebalances[step] == first.rebalances[step - 1]:
            renewed += 1
            np.testing.assert_array_equal(first.maps[step], first.maps[step - 1])
    assert (renewed >= 2) == (case.window == 2)


def refused(start: Start, spoil: Callable[[], None] | None = None) -> tuple[object, list[str]]:
    """How a scheduler ends that must not start: exit code, and what it wrote."""
    import contextlib
    import io
    import os

    os.environ |= ON_CPU
    written = io.StringIO()
    try:
        with contextlib.redirect_stderr(written):
            if spoil is not None:
                spoil()
            Scheduler(start)
    except SystemExit as end:
        return end.code, [line for line in written.getvalue().splitlines() if line.startswith("eplb-plugin")]
    return None, []


def another_plugin() -> None:
    """A plugin that replaces a function of ours after us, while the initial placement is made."""
    from sglang.srt.eplb.expert_distribution import ExpertDistributionRecorder, _ExpertDistributionRecorderReal

    original = ExpertDistributionRecorder.init_new

    def init_new(*args: Any, **kwargs: Any) -> Any:
        _ExpertDistributionRecorderReal.on_select_experts = lambda self, topk_ids: None
        return original(*args, **kwargs)

    ExpertDistributionRecorder.init_new = staticmethod(init_new)


@pytest.mark.parametrize(
    ("options", "spoil", "line"),
    [
        ({}, another_plugin, "on_select_experts: found not hooked, expected the eplb-plugin hook in force; fix: "),
        pytest.param({"ep_num_redundant_experts": 4, "eplb_algorithm": "deepseek"}, None,
                     "eplb_algorithm: found deepseek, expected affinity", marks=pytest.mark.full),
    ],
    ids=["another plugin", "another algorithm"],
)  # fmt: skip
def test_a_scheduler_ends_with_one_line(tmp_path: Path, options: dict[str, Any], spoil: Any, line: str) -> None:
    """SGLang would only log it, and die at the first rebalance."""
    start = Start(model_folder(tmp_path), [SETTINGS] * RANKS, options)
    for code, lines in run_ranks(RANKS, refused, start, spoil, timeout=200):
        assert code == 2
        assert len(lines) == 1
        assert line in lines[0]
