"""The rule that can say no, and settings that the server accepts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml

from eplb_plugin import RoutingStatistics
from eplb_plugin.observe.advice import Both, Cluster, Survey, survey
from eplb_plugin.observe.recommendation import recommend, settings_yaml
from eplb_plugin.plan_types import PlanOptions
from eplb_plugin.settings.config import parse_config
from surveys import AFFINITY, BALANCED, HASH, recording


def test_it_says_yes_where_ranks_are_uneven(surveyed: Survey) -> None:
    made = recommend(surveyed, HASH)
    assert made.enable
    assert min(made.best.work_saved) > 0.1


def test_it_says_no_where_nothing_is_to_be_gained() -> None:
    """Even experts without clusters: no policy saves work or copies on unseen tokens."""
    made = recommend(survey(recording(1.0, strength=0.0), Cluster(2, 2), [BALANCED, AFFINITY]), HASH)
    assert not made.enable
    assert "NOT recommended" in settings_yaml(made, 2, 2).splitlines()[0]


def test_it_says_no_where_moves_never_pay(skewed: RoutingStatistics) -> None:
    """Complete prices under which only crossings cost, of which a balanced plan saves none."""
    options = PlanOptions(expert_bytes=1e9, link_gbps=1.0, token_bytes=1e6, seconds_per_selection=1e-12, load_error=0.0)
    made = survey(skewed, Cluster(2, 2), [BALANCED], options=options)
    breaks_even = made.outcomes[0].break_even_tokens
    assert recommend(made, HASH, options).enable == (max(breaks_even) < float("inf"))
    cheap = PlanOptions(expert_bytes=1e3, link_gbps=1.0, seconds_per_selection=1e-3, load_error=0.0)
    paid = survey(skewed, Cluster(2, 2), [BALANCED], options=cheap)
    assert recommend(paid, HASH, cheap).enable
    ten_times = PlanOptions(expert_bytes=1e4, link_gbps=1.0, seconds_per_selection=1e-3, load_error=0.0)
    dearer = survey(skewed, Cluster(2, 2), [BALANCED], options=ten_times).outcomes[0].break_even_tokens
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


def test_the_better_of_two_in_both_is_chosen_and_not_the_more_even_one(surveyed: Survey) -> None:
    """3 points less work saved, 24 points more copies: what a slow network is there for. The reasons say both."""
    even = replace(surveyed.outcomes[0], work_saved=Both(0.13, 0.12), copies_saved=Both(0.0, 0.01))
    near = replace(even, candidate=AFFINITY, work_saved=Both(0.10, 0.08), copies_saved=Both(0.25, 0.24))
    made = recommend(replace(surveyed, outcomes=[even, near]), HASH)
    assert made.enable
    assert made.best is near
    assert any("a point of work counts like a point of copies" in reason for reason in made.reasons)
    assert any("balanced, hash, 0 redundant experts, saves more work (-12%), copies -0%" in one for one in made.reasons)
    uneven = replace(near, work_saved=Both(-0.05, -0.04), copies_saved=Both(0.9, 0.9))  # no step is faster for it
    assert recommend(replace(surveyed, outcomes=[even, uneven]), HASH).best is even


def test_prices_decide_where_all_are_given(skewed: RoutingStatistics) -> None:
    """Where copies cost nothing to speak of the most even one is chosen; where they cost much, the nearest one."""
    cheap = PlanOptions(expert_bytes=1e3, link_gbps=1e6, token_bytes=1.0, seconds_per_selection=1e-3, load_error=0.0)
    dear = PlanOptions(expert_bytes=1e3, link_gbps=1.0, token_bytes=1e6, seconds_per_selection=1e-12, load_error=0.0)
    for options, saved in ((cheap, "work_saved"), (dear, "copies_saved")):
        made = survey(skewed, Cluster(2, 2), [BALANCED, AFFINITY], options=options)
        for one in made.outcomes:
            assert one.time_saved == pytest.approx(getattr(one, saved), abs=0.02)
        reasons = recommend(made, HASH, options).reasons
        assert any(reason.startswith("by the prices given, steps take") for reason in reasons)


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


@pytest.mark.parametrize(("tokens", "said"), [(4 * 128.0, False), (4 * 127.0, True)])
def test_few_tokens_a_step_are_a_word_of_caution(surveyed: Survey, tokens: float, said: bool) -> None:
    """Per rank; what others report of decode, not what was measured here: it does not decide."""
    made = recommend(surveyed, HASH, tokens_per_step=tokens, ranks=4)
    assert any("others report no gain below 128" in reason for reason in made.reasons) == said
    assert made.enable
