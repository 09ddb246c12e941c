"""Arms of a benchmark measured in paired rounds: every arm in every round, in turn, under the same traffic.

What drifts from round to round hits the arms of a round alike, so that differences within rounds are compared. The
unit is the round where two arms were served by the same server, else the server start: rounds of one start share what
is peculiar to it (memory layout, ports, where the scheduler put its threads), and are no independent witnesses of a
difference between servers. Their mean counts then. Student's t (1908) over the units' log ratios gives the interval,
and Holm's correction (1979) for all comparisons of the table decides what is told apart.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import atan, cos, exp, log, pi, sin, sqrt
from statistics import fmean, stdev
from typing import Literal

from ..errors import mismatch
from .comparison import holm

LEAST_UNITS = 3
LARGER_IS_BETTER = {"output_tokens_per_second", "qps", "balancedness"}

Verdict = Literal["better", "worse", "not told apart", "reference", "not compared"]


@dataclass(frozen=True)
class Round:
    """One arm's part of one round.

    condition: what was the same for all arms of the round and differs between rounds by intent (rate, concurrency);
    start: number of the server start; server: equal where the same running server was measured.
    """

    arm: str
    condition: str
    start: int
    round: int
    server: str
    figures: Mapping[str, float]


@dataclass(frozen=True)
class PairedCell:
    """One figure of one arm under one condition.

    mean: over the rounds; change: geometric mean of the ratios to the reference, less 1; low, high: its interval;
    unit: what was counted as independent, and units: how many; p: after Holm's correction.
    """

    arm: str
    condition: str
    figure: str
    mean: float
    change: float | None
    low: float | None
    high: float | None
    unit: Literal["round", "start"]
    units: int
    p: float | None
    verdict: Verdict


@dataclass(frozen=True)
class PairedComparison:
    """cells: condition by condition, figure by figure, arm by arm; comparisons: how many Holm's correction is for."""

    cells: list[PairedCell]
    reference: str
    level: float
    comparisons: int


def compare_paired(
    rounds: Sequence[Round], reference: str | None = None, level: float = 0.05, shown: Collection[str] = ()
) -> PairedComparison:
    """Compare every arm with the reference (the first arm).

    shown: figures of which only the means are of interest; a test of theirs would make all others less sharp.
    Raises PluginError if arms were not measured in pairs.
    """
    if not 0.0 < level < 1.0:
        raise mismatch("level", found=level, expected="above 0 and below 1", fix="pass a level such as 0.05")
    arms = list(dict.fromkeys(one.arm for one in rounds))
    if len(arms) < 2:
        fix = "measure the plugin and what it is compared with"
        raise mismatch("compare", found=f"{len(arms)} arm", expected="two or more", fix=fix)
    reference = arms[0] if reference is None else reference
    if reference not in arms:
        raise mismatch("reference", found=reference, expected=f"one of {', '.join(arms)}", fix="pass one of these arms")
    by_place = _by_place(rounds)
    conditions = list(dict.fromkeys(one.condition for one in rounds))
    figures = list(dict.fromkeys(name for one in rounds for name in one.figures))
    tests = {}
    for key in product(conditions, figures, arms):
        if key[1] in shown or key[2] == reference:
            continue
        if (test := _test(by_place, *key, reference, level)) is not None:
            tests[key] = test
    adjusted = holm({key: test.p for key, test in tests.items()})
    cells = []
    for condition, figure, arm in product(conditions, figures, arms):
        values = [one.figures[figure] for one in rounds if (one.condition, one.arm) == (condition, arm)
                  if figure in one.figures]  # fmt: skip
        if values:
            key = condition, figure, arm
            cells.append(_cell(key, fmean(values), tests.get(key), adjusted.get(key), reference, level))
    return PairedComparison(cells, reference, level, len(tests))


@dataclass(frozen=True)
class _Test:
    unit: Literal["round", "start"]
    units: int
    centre: float  # of log ratios
    half_width: float
    p: float


_Place = tuple[str, int, int, str]  # condition, start, round, arm


def _by_place(rounds: Sequence[Round]) -> dict[_Place, Round]:
    by_place: dict[_Place, Round] = {}
    for one in rounds:
        place = (one.condition, one.start, one.round, one.arm)
        if place in by_place:
            where = f"round {one.round} of start {one.start}, {one.condition}"
            raise mismatch(f"arm {one.arm}", found=f"{where} twice", expected="once", fix="number rounds and starts")
        by_place[place] = one
    return by_place


def _test(
    by_place: Mapping[_Place, Round], condition: str, figure: str, arm: str, reference: str, level: float
) -> _Test | None:
    """None where there are too few pairs, or a value that has no logarithm."""
    ratios: dict[int, list[float]] = {}
    same_server = True
    for (where, start, number, which), one in by_place.items():
        other = by_place.get((condition, start, number, reference))
        if (where, which) != (condition, arm) or other is None or not {figure} <= one.figures.keys() & other.figures:
            continue
        ours, theirs = one.figures[figure], other.figures[figure]
        if min(ours, theirs) <= 0.0:
            return None
        ratios.setdefault(start, []).append(log(ours / theirs))
        same_server &= one.server == other.server
    units = [ratio for of_start in ratios.values() for ratio in of_start]
    if not same_server:
        units = [fmean(of_start) for of_start in ratios.values()]
    if len(units) < LEAST_UNITS:
        return None
    freedom, centre = len(units) - 1, fmean(units)
    error = stdev(units) / sqrt(len(units))
    p = 1.0 if centre == 0.0 else 0.0 if error == 0.0 else student_p(centre / error, freedom)
    return _Test("round" if same_server else "start", len(units), centre, student_t(level, freedom) * error, p)


def _cell(
    key: tuple[str, str, str], mean: float, test: _Test | None, p: float | None, reference: str, level: float
) -> PairedCell:
    condition, figure, arm = key
    if test is None or p is None:
        verdict: Verdict = "reference" if arm == reference else "not compared"
        return PairedCell(arm, condition, figure, mean, None, None, None, "round", 0, None, verdict)
    change, low, high = (exp(test.centre + side * test.half_width) - 1.0 for side in (0.0, -1.0, 1.0))
    verdict = "not told apart"
    if p <= level:
        verdict = "better" if (change > 0.0) == (figure in LARGER_IS_BETTER) else "worse"
    return PairedCell(arm, condition, figure, mean, change, low, high, test.unit, test.units, p, verdict)


def student_p(t: float, freedom: int) -> float:
    """Two-sided p of Student's t with whole degrees of freedom (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    angle = atan(abs(t) / sqrt(freedom))
    odd = freedom % 2
    term, total = (cos(angle) if odd else 1.0), 0.0
    for step in range(1 + odd, freedom, 2):
        total += term
        term *= cos(angle) ** 2 * step / (step + 1)
    inside = sin(angle) * total
    return max(0.0, 1.0 - (2.0 / pi * (angle + inside) if odd else inside))


def student_t(level: float, freedom: int) -> float:
    """The t that is exceeded on either side with probability `level`."""
    low, high = 0.0, 1.0
    while student_p(high, freedom) > level:
        high *= 2.0
    for _ in range(60):
        middle = (low + high) / 2.0
        low, high = (middle, high) if student_p(middle, freedom) > level else (low, middle)
    return high
