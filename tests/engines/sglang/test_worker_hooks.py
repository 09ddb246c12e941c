"""The plugin in schedulers of two ranks: SGLang's own configuration, routers, recorder, EPLB manager and updater.

No server and no GPU: with an all-to-all backend only the dispatcher is stood in for. What real servers do is tested in
tests/sglang.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from eplb_plugin import Placement, RoutingStatistics
from processes import run_ranks

from .lives import FAILING, INTERVAL, REBALANCES, Seen, live, routed
from .schedulers import EXPERTS, LAYERS, MOE_LAYERS, REDUNDANT, Start, model_folder

RANKS = 2
SETTINGS = {"topology": {"nodes": 2}, "sample_rows": 256, "migration": {"layers_per_step": 3}}
SLOTS = EXPERTS + REDUNDANT
DEEPEP = {"moe_a2a_backend": "deepep"}


@dataclass(frozen=True)
class Case:
    """shared: all ranks route the same tokens. start: the initial placement. window: passes that a window holds.

    layers: that may change in a pass. settings: on which ranks. rule: of the settings. canary: SGLang's own check, by
    the plugin.
    """

    name: str
    options: dict[str, Any]
    shared: bool
    gatherer: str
    start: str = "trivial"
    window: int = INTERVAL
    layers: int = 3
    rule: str = "auto"
    settings: tuple[bool, bool] = (True, True)
    canary: bool = False


CASES = (
    Case("no all-to-all", {"eplb_rebalance_layers_per_chunk": 1}, True, "_SelectExpertsSinglePassGatherer", layers=1,
         settings=(True, False)),
    Case("DeepEP normal", {**DEEPEP, "deepep_mode": "normal", "eplb_rebalance_layers_per_chunk": 2,
          "enable_two_batch_overlap": True}, False,
         "_SelectExpertsSinglePassGatherer", start="placement", layers=2),
    Case("DeepEP normal, approximate",
         {**DEEPEP, "deepep_mode": "normal", "expert_distribution_recorder_mode": "stat_approx"}, False,
         "_DeepepNormalSinglePassGatherer", start="counts", rule="nearest"),
    Case("DeepEP low latency",
         {**DEEPEP, "deepep_mode": "low_latency", "expert_distribution_recorder_buffer_size": 2}, False,
         "_DeepepLowLatencySinglePassGatherer", window=2, canary=True),
    Case("cover, no all-to-all", {}, True, "_SelectExpertsSinglePassGatherer", rule="cover"),
    Case("cover, DeepEP auto",
         {**DEEPEP, "deepep_mode": "auto", "enable_two_batch_overlap": True,
          "expert_distribution_recorder_buffer_size": 2}, False,
         "_SelectExpertsSinglePassGatherer", start="placement", window=2, rule="cover", canary=True),
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
    return run_ranks(RANKS, live, Start(model_folder(folder), settings, options, case.canary), case.shared, timeout=400)


def test_the_gatherer_is_the_one_meant(case: Case, seen: list[Seen]) -> None:
    """SGLang counts in three ways, one of which sees no ids; recording works with each."""
    assert {one.gatherer for one in seen} == {case.gatherer}


def test_statistics_are_what_was_routed(case: Case, seen: list[Seen]) -> None:
    """Logical ids, every token once, on the planning rank only; no padding, draft or warm-up, all micro-batches; single
    steps too, of ranks that are idle in some of them.

    A window is the last passes of an interval, which begins when the rebalance before is over.
    """
    assert seen[1].statistics == []
    assert len(seen[0].statistics) == REBALANCES
    assert seen[0].begun == [INTERVAL, *(over + INTERVAL for over in seen[0].over[:-1])]
    for begun, found in zip(seen[0].begun, seen[0].statistics, strict=True):
        owners = [0] if case.shared else range(RANKS)
        steps = range(begun + 1 - case.window, begun + 1)
        passed = [(step, routed(rank, step, case.shared)) for step in steps for rank in owners]
        rows = np.concatenate([ids for _, ids in passed], axis=1)
        of_step = np.concatenate([np.full(ids.shape[1], step) for step, ids in passed])
        expected = RoutingStatistics.from_topk(rows, EXPERTS, MOE_LAYERS, steps=of_step)
        np.testing.assert_array_equal(found["load"], expected.load)
        np.testing.assert_array_equal(found["coactivation"], expected.coactivation)
        np.testing.assert_array_equal(found["num_tokens"], expected.num_tokens)
        np.testing.assert_array_equal(found["layer_ids"], MOE_LAYERS)
        np.testing.assert_array_equal(found["steps"], expected.steps)


def test_ranks_hold_what_the_map_says(seen: list[Seen]) -> None:
    """After every pass the maps of all ranks are equal and every slot holds its expert's weights; nothing is moved."""
    for one, other in zip(*(one.maps for one in seen), strict=True):
        np.testing.assert_array_equal(one, other)
    assert all(one.weights_right and one.addresses_kept for one in seen)
    assert all(one.after_another_layout in (None, (True, True)) for one in seen)


def test_placements_change_and_dense_layers_do_not(seen: list[Seen]) -> None:
    """Every rebalance that plans repairs the placement in force; the dense layer keeps its row."""
    maps = [seen[0].first_map, *seen[0].maps]
    assert not np.array_equal(maps[0][MOE_LAYERS], maps[-1][MOE_LAYERS])
    for layer in set(range(LAYERS)) - set(MOE_LAYERS):
        assert all(np.array_equal(one[layer], maps[0][layer]) for one in maps)


def test_a_failing_planner_leaves_the_placement(seen: list[Seen]) -> None:
    """The old placement stays, on every rank, and the next rebalance plans again."""
    begun, over = seen[0].begun[FAILING - 1], seen[0].over[FAILING - 1]
    for step in range(begun, over + 1):
        np.testing.assert_array_equal(seen[0].maps[step], seen[0].maps[begun - 1])
    assert not np.array_equal(seen[0].maps[over], seen[0].maps[-1])


def test_serving_goes_on_while_experts_move(case: Case, seen: list[Seen]) -> None:
    """A pass plans nothing and switches few layers, on all ranks the same; by the end it was every one of them."""
    assert [one.over for one in seen] == [seen[0].over] * RANKS
    assert all(over > begun for begun, over in zip(seen[0].begun, seen[0].over, strict=True))
    maps = [seen[0].first_map, *seen[0].maps]
    moved = [int((one != other).any(1).sum()) for one, other in itertools.pairwise(maps)]
    assert sorted(moved)[-2] <= case.layers  # but once, where a reload ended what was under way
    assert sum(moved) > len(MOE_LAYERS)


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


def test_all_copies_serve_from_the_start(case: Case, seen: list[Seen]) -> None:
    """As the first plan assumes; SGLang's own maps name near copies alone where there is an all-to-all."""
    for one in seen:
        counts = Placement(one.first_map.astype(np.int32)).replica_count
        np.testing.assert_array_equal(one.copies[MOE_LAYERS], counts[MOE_LAYERS])


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
    """By tables made of weights (compared in every pass before which nothing moves); else SGLang chooses by itself."""
    assert all((one.weighted > 10 * len(MOE_LAYERS)) == (case.rule != "nearest") for one in seen)


def test_sglang_s_own_count_is_what_it_was(case: Case, seen: list[Seen]) -> None:
    """Its recorder holds every pass's slots, though its launches are spared where the plugin's makes the count."""
    for one in seen:
        assert all(one.slots_counted)
        assert bool(one.slots_counted) == (case.gatherer == "_SelectExpertsSinglePassGatherer")


def test_weights_are_renewed_between_rebalances(case: Case, seen: list[Seen]) -> None:
    """Where a window leaves room for it: on the same pass on all ranks, and no expert moves."""
    first, other = seen
    busy = {step for begun, over in zip(first.begun, first.over, strict=True) for step in range(begun, over + 1)}
    renewed = [step for step in range(1, len(first.plans)) if first.plans[step] != first.plans[step - 1]]
    renewed = [step for step in renewed if step not in busy]
    assert all(first.plans[step] == other.plans[step] for step in range(len(first.plans)) if step not in busy)
    assert all(np.array_equal(first.maps[step], first.maps[step - 1]) for step in renewed)
    assert (len(renewed) >= 2) == (case.window == 2)
