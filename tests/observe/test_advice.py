"""Advice: figures of unseen tokens, a rule that can say no, and settings that the server accepts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import yaml

from eplb_plugin import PluginError, RoutingStatistics, Topology, plan
from eplb_plugin.config import parse_config
from eplb_plugin.observe.advice import Both, Candidate, Survey, slots_of, split, survey
from eplb_plugin.observe.judging import judge_draws
from eplb_plugin.observe.recommendation import recommend, settings_yaml
from eplb_plugin.placement import linear_placement
from eplb_plugin.plan_types import PlanOptions
from eplb_plugin.planning.job import plan_of
from eplb_plugin.planning.score import moved_slots
from eplb_plugin.workloads.families import FAMILIES
from eplb_plugin.workloads.imbalance import fitted_router, loads_at
from eplb_plugin.workloads.routing import ClusteredRouter

EXPERTS, LAYERS, HASH = 32, 2, ("hash",)
AFFINITY, BALANCED = Candidate("affinity", "hash", 4), Candidate("balanced", "hash", 0)


def recording(factor: float, strength: float = 3.0, tokens: int = 1600) -> RoutingStatistics:
    router = ClusteredRouter(LAYERS, EXPERTS, 4, num_topics=4, strength=strength, purity=0.8)
    target = loads_at(factor, FAMILIES["lognormal"], EXPERTS, 4, 4, LAYERS)
    return RoutingStatistics.from_topk(fitted_router(router, target.shares, tokens).window(tokens), EXPERTS)


@pytest.fixture(scope="module")
def skewed() -> RoutingStatistics:
    return recording(1.35)


@pytest.fixture(scope="module")
def surveyed(skewed: RoutingStatistics) -> Survey:
    return survey(skewed, 2, 2, [BALANCED, AFFINITY], expert_bytes=1e6)


def test_figures_are_those_of_the_unseen_half(skewed: RoutingStatistics, surveyed: Survey) -> None:
    """By hand for one direction: planned on the first half, judged on the second, against the engine's start."""
    rows, topology = skewed.sample, Topology(2, 2, 9)
    first, second = (RoutingStatistics.from_topk(half, EXPERTS) for half in (rows[:, :800], rows[:, 800:]))
    made = plan(first, topology, policy="affinity", dispatch="hash")
    after = judge_draws(second.sample, made, 1, 0)
    start = plan_of(linear_placement(LAYERS, EXPERTS, EXPERTS), Topology(2, 2, 8), "hash")
    before = judge_draws(second.sample, start, 1, 0)
    found = surveyed.outcomes[1]
    assert found.balancedness.forth == pytest.approx(after.balancedness.mean())
    assert found.cross_node_copies.forth == pytest.approx(after.cross_node_copies.mean())
    assert found.copies_saved.forth == pytest.approx(
        1 - after.cross_node_copies.mean() / before.cross_node_copies.mean()
    )
    assert found.work_saved.forth == pytest.approx(1 - (1 / after.balancedness).sum() / (1 / before.balancedness).sum())
    assert surveyed.balancedness.forth == pytest.approx(before.balancedness.mean())
    following = plan(second, topology, policy="affinity", dispatch="hash", previous=made.placement)
    moves = moved_slots(following.placement, made.placement, topology).sum()
    assert found.next_moves.forth == moves
    assert found.gigabytes_moved == pytest.approx(found.next_moves.mean * 1e6 / 1e9)
    assert found.memory_gib == pytest.approx(LAYERS * 1e6 / 2**30)  # one slot more per rank
    assert surveyed.outcomes[0].memory_gib == 0.0


def test_it_says_yes_where_ranks_are_uneven(surveyed: Survey) -> None:
    made = recommend(surveyed, HASH)
    assert made.enable
    assert min(made.best.work_saved) > 0.1


def test_it_says_no_where_nothing_is_to_be_gained() -> None:
    """Even experts without clusters: no policy saves work or copies on unseen tokens."""
    made = recommend(survey(recording(1.0, strength=0.0), 2, 2, [BALANCED, AFFINITY]), HASH)
    assert not made.enable
    assert "NOT recommended" in settings_yaml(made, 2, 2).splitlines()[0]


def test_it_says_no_where_moves_never_pay(skewed: RoutingStatistics) -> None:
    """Complete prices under which only crossings cost, of which a balanced plan saves none."""
    options = PlanOptions(expert_bytes=1e9, link_gbps=1.0, token_bytes=1e6, seconds_per_selection=1e-12, load_error=0.0)
    made = survey(skewed, 2, 2, [BALANCED], options=options)
    breaks_even = made.outcomes[0].break_even_tokens
    assert recommend(made, HASH, options).enable == (max(breaks_even) < float("inf"))
    cheap = PlanOptions(expert_bytes=1e3, link_gbps=1.0, seconds_per_selection=1e-3, load_error=0.0)
    paid = survey(skewed, 2, 2, [BALANCED], options=cheap)
    assert recommend(paid, HASH, cheap).enable
    ten_times = PlanOptions(expert_bytes=1e4, link_gbps=1.0, seconds_per_selection=1e-3, load_error=0.0)
    dearer = survey(skewed, 2, 2, [BALANCED], options=ten_times).outcomes[0].break_even_tokens
    assert dearer == pytest.approx(tuple(10 * one for one in paid.outcomes[0].break_even_tokens))


def test_only_the_engines_rule_is_recommended(surveyed: Survey) -> None:
    made = recommend(surveyed, ("nearest", "weighted"))
    assert (made.enable, made.best) == (False, None)


def test_settings_are_what_the_server_accepts(surveyed: Survey) -> None:
    """Parsed as the server does; the interval is stretched where moves need long to pay."""
    made = recommend(surveyed, HASH)
    options = PlanOptions(expert_bytes=1e6, link_gbps=50.0, token_bytes=1e3)
    config = parse_config(yaml.safe_load(settings_yaml(made, 2, 2, options)), "test")
    one = made.best.candidate
    assert (config.policy, config.num_redundant_experts, config.dispatch) == (one.policy, one.redundant, "hash")
    assert config.price.link_gbps == 50.0
    assert config.step_interval is None
    slow = replace(made, best=replace(made.best, break_even_tokens=Both(4e6, 2e6)))
    assert yaml.safe_load(settings_yaml(slow, 2, 2, None, tokens_per_step=4000.0))["step_interval"] == 10_000


def test_few_redundant_experts_are_preferred_among_equals(surveyed: Survey) -> None:
    """Two outcomes within the thresholds: the one that needs less memory."""
    small = surveyed.outcomes[0]
    large = replace(small, candidate=AFFINITY, work_saved=Both(*(one + 0.01 for one in small.work_saved)))
    equal = replace(surveyed, outcomes=[large, small])
    assert recommend(equal, HASH).best is small
    better = replace(large, work_saved=Both(*(one + 0.03 for one in small.work_saved)))
    assert recommend(replace(surveyed, outcomes=[better, small]), HASH).best is better


def test_loads_alone_are_split_by_drawing() -> None:
    """Every selection goes to one of the halves; nothing is said of nodes."""
    window = RoutingStatistics(np.arange(1, 65).reshape(2, 32) * 100)
    first, second = split(window)
    np.testing.assert_array_equal(first.load + second.load, window.load)
    made = survey(window, 2, 2, [BALANCED])
    assert (made.has_tokens, made.outcomes[0].copies_saved) == (False, None)
    assert recommend(made, HASH).enable
    with pytest.raises(PluginError, match="recording: found no selection"):
        survey(RoutingStatistics(np.zeros((1, 4))), 2, 2, [BALANCED])


def test_slots_divide_onto_ranks() -> None:
    assert (slots_of(32, 4), slots_of(32, 4, 4), slots_of(30, 4)) == (8, 9, 8)
    with pytest.raises(PluginError, match=r"found 5, expected 0 or more by steps of 4.*the nearest is 4"):
        slots_of(32, 4, 5)


@pytest.mark.parametrize(
    ("work", "copies", "enable"),
    [
        ((0.5, 0.0), (0.0, 0.0), False),  # only one of the two directions saves work
        ((0.02, 0.02), (-1.0, -1.0), True),
        ((0.0, 0.0), (0.5, 0.04), False),
        ((-0.01, 0.0), (0.05, 0.06), True),
        ((-0.03, 0.0), (0.5, 0.5), False),  # locality that costs balance
    ],
)
def test_the_worse_direction_decides(
    surveyed: Survey, work: tuple[float, float], copies: tuple[float, float], enable: bool
) -> None:
    one = replace(surveyed.outcomes[1], work_saved=Both(*work), copies_saved=Both(*copies))
    assert recommend(replace(surveyed, outcomes=[one]), HASH).enable is enable
