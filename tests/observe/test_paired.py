"""Paired rounds: intervals that keep their promise, the right unit, and no verdict within noise."""

from __future__ import annotations

import math

import numpy as np
import pytest

from eplb_plugin import PluginError
from eplb_plugin.observe.paired import PairedCell, Round, compare_paired, student_p, student_t


def rounds(
    rng: np.random.Generator, *, gain: float = 1.0, starts: int = 3, per_start: int = 4, noise: float = 0.03,
    of_start: float = 0.0, shared: bool = True, figure: str = "output_tokens_per_second",
) -> list[Round]:  # fmt: skip
    """Two arms, the second `gain` times the first; rounds drift wildly, arms differ by noise, and by start if told."""
    made = []
    for start in range(starts):
        own = rng.normal(0.0, of_start)
        for number in range(per_start):
            drift = rng.normal(0.0, 1.0)
            for arm, log_gain in (("a", 0.0), ("b", math.log(gain) + own)):
                value = math.exp(drift + log_gain + rng.normal(0.0, noise))
                server = f"one {start}" if shared else f"{arm} {start}"
                made.append(Round(arm, "10 Mbit/s", start, number, server, {figure: value}))
    return made


def cell_of(made: list[Round], arm: str = "b", **options: float) -> PairedCell:
    (cell,) = [cell for cell in compare_paired(made, **options).cells if cell.arm == arm]
    return cell


@pytest.mark.parametrize(("freedom", "t"), [(1, 12.7062), (2, 4.30265), (3, 3.18245), (9, 2.26216), (30, 2.04227)])
def test_students_t_is_that_of_the_tables(freedom: int, t: float) -> None:
    assert student_t(0.05, freedom) == pytest.approx(t, rel=1e-5)
    assert student_p(t, freedom) == pytest.approx(0.05, rel=1e-4)
    assert student_p(-t, freedom) == student_p(t, freedom)


def test_drift_between_rounds_does_not_count() -> None:
    """Rounds differ by factors of e, arms by 10 %: told, because every round has both arms."""
    cell = cell_of(rounds(np.random.default_rng(0), gain=1.1))
    assert cell.verdict == "better"
    assert (cell.unit, cell.units) == ("round", 12)
    assert cell.low is not None
    assert cell.high is not None
    assert cell.low < 0.1 < cell.high


def test_change_and_interval_by_hand() -> None:
    ratios = [1.1, 1.2, 1.3, 1.15]
    made = [
        Round(arm, "-", 0, number, "s", {"tpot_p90_ms": 50.0 * factor})
        for number, ratio in enumerate(ratios)
        for arm, factor in (("a", 1.0), ("b", ratio))
    ]
    cell, logs = cell_of(made), np.log(ratios)
    half = 3.182446 * logs.std(ddof=1) / 2
    assert cell.change == pytest.approx(math.exp(logs.mean()) - 1)
    assert cell.low == pytest.approx(math.exp(logs.mean() - half) - 1, rel=1e-5)
    assert cell.high == pytest.approx(math.exp(logs.mean() + half) - 1, rel=1e-5)
    assert cell.mean == pytest.approx(50 * np.mean(ratios))
    assert cell.verdict == "worse"  # a latency


def test_servers_of_their_own_are_compared_by_starts() -> None:
    """What differs between two starts of a server is no gain of the arm, however many rounds a start has."""
    rng, told = np.random.default_rng(1), {True: 0, False: 0}
    for _ in range(200):
        made = rounds(rng, starts=4, per_start=10, of_start=0.05, shared=False)
        assert cell_of(made).unit == "start"
        told[False] += cell_of(made).verdict != "not told apart"
        as_if_shared = [Round(r.arm, r.condition, r.start, r.round, "one", r.figures) for r in made]
        told[True] += cell_of(as_if_shared).verdict != "not told apart"
    assert told[False] <= 20  # 5 % of 200, within chance
    assert told[True] > 60  # what the rule is for


def test_noise_is_ranked_no_more_often_than_the_level_says() -> None:
    rng, names = np.random.default_rng(2), [f"figure {number}" for number in range(6)]
    wrong = 0
    for _ in range(200):
        values = rng.lognormal(0.0, 0.1, (10, 3, len(names)))
        made = [
            Round(arm, "-", 0, number, "s", dict(zip(names, values[number, column], strict=True)))
            for number in range(10)
            for column, arm in enumerate("abc")
        ]
        wrong += any(cell.verdict in ("better", "worse") for cell in compare_paired(made).cells)
    assert wrong <= 20


def test_two_pairs_and_zeros_decide_nothing() -> None:
    few = cell_of(rounds(np.random.default_rng(3), gain=9.0, starts=1, per_start=2))
    assert (few.verdict, few.change) == ("not compared", None)
    zero = [Round(arm, "-", 0, number, "s", {"copies_per_token": 0.0}) for number in range(5) for arm in "ab"]
    assert cell_of(zero).verdict == "not compared"


def test_a_round_without_its_partner_is_left_out() -> None:
    made = rounds(np.random.default_rng(4), starts=1, per_start=6)
    assert cell_of([one for one in made if (one.arm, one.round) != ("a", 3)]).units == 5


def test_conditions_are_apart_and_the_reference_is_named() -> None:
    slow = rounds(np.random.default_rng(5), gain=2.0)
    fast = [Round(r.arm, "no limit", r.start, r.round, r.server, r.figures) for r in slow]
    made = compare_paired(slow + fast, reference="b")
    assert made.comparisons == 2
    assert {(cell.condition, cell.arm, cell.verdict) for cell in made.cells} == {
        (condition, arm, verdict)
        for condition in ("10 Mbit/s", "no limit")
        for arm, verdict in (("a", "worse"), ("b", "reference"))
    }


def test_refusals() -> None:
    made = rounds(np.random.default_rng(6))
    with pytest.raises(PluginError, match="twice"):
        compare_paired(made + made[:1])
    with pytest.raises(PluginError, match="1 arm"):
        compare_paired(made[::2])
    with pytest.raises(PluginError, match="one of a, b"):
        compare_paired(made, reference="c")
    with pytest.raises(PluginError, match="level"):
        compare_paired(made, level=1.0)
