"""The tables of traces/README.md: what the windows are like, and what plans made on one of them hold on the others."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from functools import reduce
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eplb_plugin import Placement, Plan, RoutingStatistics, Topology, plan
from eplb_plugin.observe.judging import judge_draws
from eplb_plugin.placement import linear_placement
from eplb_plugin.plan_types import Dispatch, Policy
from eplb_plugin.planning.score import LayerScores
from eplb_plugin.workloads.trace import read_window

from .statistics import lift, moved

TOPOLOGY = Topology(num_nodes=4, ranks_per_node=1, slots_per_rank=9)  # 32 experts and 4 redundant ones
ARMS: dict[str, tuple[Policy, Dispatch]] = {
    "vanilla EPLB": ("deepseek", "hash"),
    "affinity, hash": ("affinity", "hash"),
    "affinity, weighted": ("affinity", "weighted"),
    "affinity, cover": ("affinity", "cover"),
}
CODE = ("programs", "headers")
WINDOWS = {"code-1": (CODE, 0), "code-2": (CODE, 1), "prose": (("prose",), 0)}  # name: kinds, which text of them
KNOWN = "code-1"
# what is judged: (planned on, judged on), of which the mean counts
JUDGED = {
    "other code": (("code-1", "code-2"), ("code-2", "code-1")),
    "prose": (("code-1", "prose"), ("code-2", "prose")),
}
# what follows each other in a run of the serving benchmark: (window, number of the kind in it)
KINDS = {"programs": ("code-1", 0), "headers": ("code-1", 1), "prose": ("prose", 0)}
SEQUENCE = 256  # tokens of one kind on end, as in training
_BLOCK = re.compile(r"(<!-- scripts/sample_trace -->\n).*?(<!-- end -->)", re.DOTALL)


def read(folder: Path) -> dict[str, RoutingStatistics]:
    return {name: read_window(folder / f"{name}.npz") for name in WINDOWS}


def read_kinds(folder: Path, first: int) -> list[RoutingStatistics]:
    """A window of every kind of text, of every second sequence from `first` on: two halves that have none in common."""
    found = []
    for name, kind in KINDS.values():
        with np.load(folder / f"{name}.npz") as trace:
            ids, kinds = trace["topk_ids"], trace["kind_of_token"]
        layers, _, top_k = ids.shape
        sequences = ids[:, kinds == kind].reshape(layers, -1, SEQUENCE, top_k)[:, first::2]
        found.append(RoutingStatistics.from_topk(sequences.reshape(layers, -1, top_k), 32))
    return found


def together(windows: Iterable[RoutingStatistics]) -> RoutingStatistics:
    """Of which every window is a part."""
    return reduce(RoutingStatistics.merge, windows)


def in_turn(made: Plan, windows: Iterable[RoutingStatistics]) -> tuple[float, float]:
    """Balancedness and copies, each the mean over the windows."""
    means = [judge_draws(_sample(window), made, draws=3, seed=0).mean() for window in windows]
    return float(np.mean([m.balancedness for m in means])), float(np.mean([m.cross_node_copies for m in means]))


def tables(folder: Path) -> str:
    """Markdown."""
    windows = read(folder)
    halves = [read_kinds(folder, first) for first in (0, 1)]
    return "\n".join([*_windows(windows), "", *_plans(windows), "", *_plans_in_turn(halves)])


def write_tables(readme: Path, text: str) -> None:
    readme.write_text(_BLOCK.sub(lambda found: f"{found[1]}{text}\n{found[2]}", readme.read_text()))


def stated(readme: Path) -> str:
    found = re.search(_BLOCK.pattern.replace(".*?", "(.*?)", 1), readme.read_text(), re.DOTALL)
    assert found is not None
    return found[2].rstrip("\n")


def _windows(windows: dict[str, RoutingStatistics]) -> list[str]:
    known = windows[KNOWN]
    heads = (
        "| window | max / mean load of experts, by layer | co-activation over what loads alone give | other load than "
    )
    lines = [f"{heads}{KNOWN} |", "|---|---|---|--:|"]
    for name, window in windows.items():
        load = ", ".join(f"{one:.2f}" for one in window.load.max(1) / window.load.mean(1))
        pairs = ", ".join(f"{one:.2f}" for one in lift(window))
        lines.append(f"| `{name}` | {load} | {pairs} | {moved(known, window).mean():.0%} |")
    return lines


def _plans(windows: dict[str, RoutingStatistics]) -> list[str]:
    later = " | ".join(f"{name}: balancedness | copies" for name in JUDGED)
    lines = [f"| planned on code, judged on | {later} |", "|---|" + "--:|--:|" * len(JUDGED)]
    start = linear_placement(windows[KNOWN].num_layers, windows[KNOWN].num_experts, windows[KNOWN].num_experts)
    lines.append(_row("no EPLB", dict.fromkeys(windows, _unplanned(start)), windows))
    known = {planned for pairs in JUDGED.values() for planned, _ in pairs}
    for arm, (policy, rule) in ARMS.items():
        plans = {name: plan(windows[name], TOPOLOGY, policy=policy, dispatch=rule) for name in known}
        lines.append(_row(arm, plans, windows))
    return lines


def _plans_in_turn(halves: list[list[RoutingStatistics]]) -> list[str]:
    """halves: of all kinds of text; planned on each, judged on the other."""
    ways = " | ".join(f"{way}: balancedness | copies" for way in ("from their sum", "in parts"))
    lines = [f"| planned on all kinds of text, judged on each | {ways} |", "|---|--:|--:|--:|--:|"]
    for arm, (policy, rule) in {**ARMS, "balanced": ("balanced", "hash")}.items():
        cells = []
        for in_parts in (False, True):
            figures = []
            for known, later in (halves, halves[::-1]):
                seen = together(known)
                seen = seen if in_parts else replace(seen, parts=None)
                figures.append(in_turn(plan(seen, TOPOLOGY, policy=policy, dispatch=rule), later))
            cells += [f"{figure:.3f}" for figure in np.mean(figures, axis=0)]
        lines.append(f"| {arm} | " + " | ".join(cells if policy != "deepseek" else [*cells[:2], "–", "–"]) + " |")
    return lines


def _sample(window: RoutingStatistics) -> NDArray[np.int16]:
    assert window.sample is not None
    return window.sample


def _unplanned(start: Placement) -> Plan:
    slots = start.phy2log.shape[1] // TOPOLOGY.num_ranks
    topology = Topology(TOPOLOGY.num_nodes, TOPOLOGY.ranks_per_node, slots)
    return Plan(start, topology, "hash", np.ones(start.phy2log.shape), seconds=0.0)


def _row(arm: str, plans: dict[str, Plan], windows: dict[str, RoutingStatistics]) -> str:
    """plans: by the window that they are made of."""

    def judged(planned: str, on: str) -> LayerScores:
        return judge_draws(_sample(windows[on]), plans[planned], draws=3, seed=0)

    cells = []
    for pairs in JUDGED.values():
        means = [judged(*pair).mean() for pair in pairs]
        cells += [f"{np.mean([one.balancedness for one in means]):.3f}"]
        cells += [f"{np.mean([one.cross_node_copies for one in means]):.3f}"]
    return f"| {arm} | " + " | ".join(cells) + " |"
