"""Arms of a serving benchmark, compared so that nothing is ranked that the runs' own spread does not allow.

The rule: an arm differs from the first one in a figure if the exact two-sided rank-sum test (Wilcoxon 1945, Mann and
Whitney 1947) over the runs says so at `level`, after Holm's correction (1979) for all comparisons of the table. It
assumes nothing about the distribution. With n runs an arm its least p is 2 / C(2n, n): 0.10 for 3, 0.03 for 4, 0.008
for 5 runs, so that few runs and many comparisons can decide nothing, and `runs_needed` says how many could.

Two rules exist because there are two questions. This one asks whether runs that nothing pairs could come from one
distribution, as files of an engine's own load generator do; `paired.py` asks by how much an arm differs from another in
the same round, which needs pairs and gives an interval, where ranks would throw the pairs away.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import comb
from statistics import median
from typing import Literal, TypeVar

from ..errors import mismatch
from .bench_results import FIGURES, MODELS, Run

LEAST_RUNS = 3
TOKEN_TOLERANCE = 0.01  # of tokens per request between runs: other prompts of the same lengths differ by less
LARGER_IS_BETTER = {"qps"}

Verdict = Literal["better", "worse", "not told apart", "reference", "not reported"]
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Cell:
    """One figure of one arm at one concurrency. median, least, most: of the runs, None where one does not report it;
    ratio: median / the first arm's; p: after Holm's correction, None for the first arm."""

    arm: str
    concurrency: int | None
    figure: str
    runs: int
    median: float | None
    least: float | None
    most: float | None
    ratio: float | None
    p: float | None
    verdict: Verdict

    @property
    def spread(self) -> str:
        """The runs in words."""
        return "–" if self.median is None else f"{self.median:.4g} ({self.least:.4g} – {self.most:.4g})"

    @property
    def change(self) -> str:
        """Against the first arm; empty where there is nothing to say."""
        return "" if self.ratio is None or self.verdict == "reference" else f"{self.ratio - 1.0:+.1%} {self.verdict}"


@dataclass(frozen=True)
class Comparison:
    """cells: concurrency by concurrency, figure by figure, arm by arm; runs_needed: per arm, for any of so many
    comparisons to be decided, all runs of one arm being better than all of the other; unknown: settings that not every
    file says, so that nothing shows that they are equal."""

    cells: list[Cell]
    level: float
    comparisons: int
    runs_needed: int
    unknown: list[str]


def compare(arms: Mapping[str, Sequence[Run]], level: float = 0.05, least_runs: int = LEAST_RUNS) -> Comparison:
    """Compare every arm with the first. Raises PluginError if settings differ, or an arm has fewer than `least_runs`;
    with less than three nothing can be told apart at any usual level."""
    if len(arms) < 2:
        raise mismatch("compare", found=f"{len(arms)} arm", expected="two or more", fix="pass one path per arm")
    if not 0.0 < level < 1.0:
        raise mismatch("level", found=level, expected="above 0 and below 1", fix="pass a level such as 0.05")
    _refuse_copies(arms)
    points = sorted({run.concurrency for runs in arms.values() for run in runs}, key=lambda one: one or float("inf"))
    unknown: set[str] = set()
    for point in points:
        unknown |= _refuse_unequal(arms, point, least_runs)
    raw = {}
    reference, *others = arms
    for point, figure, arm in product(points, FIGURES, others):
        values = [_values(arms, name, point, figure) for name in (reference, arm)]
        if values[0] is not None and values[1] is not None:
            raw[point, figure, arm] = rank_sum_p(values[0], values[1])
    adjusted = holm(raw)
    cells = [_cell(arms, arm, point, figure, adjusted, level) for point, figure, arm in product(points, FIGURES, arms)]
    return Comparison(cells, level, len(raw), runs_needed(level, max(len(raw), 1)), sorted(unknown))


def runs_needed(level: float, comparisons: int) -> int:
    """Runs per arm with which the least possible p stands Holm's correction for so many comparisons."""
    runs = LEAST_RUNS
    while 2.0 / comb(2 * runs, runs) * comparisons > level:
        runs += 1
    return runs


def rank_sum_p(first: Sequence[float], second: Sequence[float]) -> float:
    """Exact two-sided p of the rank-sum test, ties by mean ranks: the share of all splits that are as uneven."""
    pooled = sorted([*first, *second])
    ranks = {value: 2 * pooled.index(value) + pooled.count(value) + 1 for value in set(pooled)}  # twice the mean rank
    splits: list[dict[int, int]] = [{0: 1}, *({} for _ in first)]  # by how many are taken: sum of ranks -> ways
    for value in pooled:
        for taken in range(len(first), 0, -1):
            for total, ways in splits[taken - 1].items():
                reached = total + ranks[value]
                splits[taken][reached] = splits[taken].get(reached, 0) + ways
    middle = len(first) * (len(pooled) + 1)  # twice the expected sum
    found = abs(sum(ranks[value] for value in first) - middle)
    extreme = sum(ways for total, ways in splits[-1].items() if abs(total - middle) >= found)
    return extreme / comb(len(pooled), len(first))


def holm(raw: Mapping[Key, float]) -> dict[Key, float]:
    """p of every comparison, corrected for all of them (Holm 1979)."""
    adjusted, largest = {}, 0.0
    for position, key in enumerate(sorted(raw, key=lambda one: raw[one])):
        largest = max(largest, min(raw[key] * (len(raw) - position), 1.0))
        adjusted[key] = largest
    return adjusted


def _cell(
    arms: Mapping[str, Sequence[Run]], arm: str, point: int | None, figure: str,
    adjusted: Mapping[tuple[int | None, str, str], float], level: float,
) -> Cell:  # fmt: skip
    values, reference = _values(arms, arm, point, figure), _values(arms, next(iter(arms)), point, figure)
    runs = len(_at(arms[arm], point))
    if values is None:
        return Cell(arm, point, figure, runs, None, None, None, None, None, "not reported")
    p = adjusted.get((point, figure, arm))
    verdict: Verdict = "reference" if arm == next(iter(arms)) else "not told apart"
    ratio = None
    if reference is not None and median(reference) > 0.0:
        ratio = median(values) / median(reference)
        if p is not None and p <= level and ratio != 1.0:
            verdict = "better" if (ratio > 1.0) == (figure in LARGER_IS_BETTER) else "worse"
    return Cell(arm, point, figure, runs, median(values), min(values), max(values), ratio, p, verdict)


def _at(runs: Sequence[Run], point: int | None) -> list[Run]:
    return [run for run in runs if run.concurrency == point]


def _values(arms: Mapping[str, Sequence[Run]], arm: str, point: int | None, figure: str) -> list[float] | None:
    runs = _at(arms[arm], point)
    return [run.figures[figure] for run in runs] if all(figure in run.figures for run in runs) else None


def _refuse_copies(arms: Mapping[str, Sequence[Run]]) -> None:
    seen: dict[str, str] = {}
    for runs in arms.values():
        for run in runs:
            if run.digest in seen:
                found = f"the same run in {seen[run.digest]} and {run.file}"
                raise mismatch("compare", found=found, expected="every run once", fix="pass every result file once")
            seen[run.digest] = run.file


def _refuse_unequal(arms: Mapping[str, Sequence[Run]], point: int | None, least_runs: int) -> set[str]:
    """-> the settings that are not known to be equal, because a file does not say them."""
    where = "without a bound on concurrency" if point is None else f"at concurrency {point}"
    for arm, runs in arms.items():
        if len(_at(runs, point)) < least_runs:
            found, expected = f"{len(_at(runs, point))} runs {where}", f"at least {least_runs} in every arm"
            raise mismatch(f"arm {arm}", found=found, expected=expected, fix="measure the arms again, in turn")
    (first, *others) = [run for runs in arms.values() for run in _at(runs, point)]
    for run in others:
        if run.generator != first.generator:
            expected = f"{first.generator} as in {first.file}"
            fix = "measure all arms with one load generator"
            raise mismatch(run.file, found=f"results of {run.generator}", expected=expected, fix=fix)
    unknown = _unknown_settings([first, *others])
    for run in others:
        for name in ("input_tokens", "output_tokens"):
            ours, theirs = getattr(run, name) / run.completed, getattr(first, name) / first.completed
            if abs(ours - theirs) > TOKEN_TOLERANCE * max(ours, theirs):
                found, expected = f"{ours:.1f} {name} per request", f"{theirs:.1f} as in {first.file} (±1 %)"
                fix = "use equal prompts, and --ignore-eos"
                raise mismatch(run.file, found=found, expected=expected, fix=fix)
    return unknown


def _unknown_settings(runs: Sequence[Run]) -> set[str]:
    """Of every setting that any of the runs names; whoever names it must name the same. Raises PluginError."""
    unknown = set()
    for name in sorted({name for run in runs for name in run.settings}):
        known = [run for run in runs if name in run.settings]
        for run in known:
            if run.settings[name] != known[0].settings[name]:
                found, expected = f"{name} {run.settings[name]!r}", f"{known[0].settings[name]!r} as in {known[0].file}"
                raise mismatch(run.file, found=found, expected=expected, fix="run all arms with equal settings")
        if len(known) < len(runs):
            unknown.add(name)
    if not any(set(MODELS) & set(run.settings) for run in runs):
        unknown.add("model")
    return unknown
