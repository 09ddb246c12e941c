"""The report: what placements do to recorded windows, and what serving benchmarks measured, as one HTML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from ..errors import mismatch
from ..peo.timeline import MODEL_NOT_MEASUREMENT
from ..placement import Placement, linear_placement
from ..plan_types import Dispatch, Plan
from ..planning.planner import plan_of
from ..planning.replicas.at_home import known_from_loads
from ..planning.score import balancedness, expected_rank_load, moved_slots
from ..statistics import RoutingStatistics
from ..topology import Topology
from .bench_results import HEADINGS, Run
from .comparison import Cell, compare
from .drawings import Floats, diverging, lines, matrix, sequential
from .gantt import SimulatedLayer, gantt
from .judging import evened_steps, judge_draws, recorded_steps
from .page import cell_values, figure, page, table

BEFORE = "engine's start"


class View(NamedTuple):
    """What placements are shown on.

    nodes, ranks_per_node: the deployment
    dispatch: rule by which tokens choose replicas
    layer: decoder-layer number whose co-activation is drawn; None: the one least balanced at the engine's start
    """

    nodes: int = 1
    ranks_per_node: int = 1
    dispatch: Dispatch = "weighted"
    layer: int | None = None


ONE_RANK = View()


def report(
    title: str, windows: Mapping[str, RoutingStatistics], placements: Mapping[str, Placement],
    arms: Mapping[str, Sequence[Run]], view: View = ONE_RANK, simulated: Sequence[SimulatedLayer] = (),
) -> str:  # fmt: skip
    """HTML of whatever is given: windows and placements by name, oldest first; runs by arm; simulated layers.

    Raises PluginError if there is nothing to show, or windows and placements are of different models.
    """
    sections: list[tuple[str, str]] = []
    if windows:
        sections += _of_windows(windows, placements, view)
    elif placements:
        raise mismatch("report", found="placements alone", expected="a recorded window", fix="pass --trace too")
    if arms:
        sections.append(("Serving", _serving(arms)))
    if simulated:
        sections.append((f"Per-expert overlap: {MODEL_NOT_MEASUREMENT}", gantt(simulated)))
    if not sections:
        fix = "pass --trace or --bench"
        raise mismatch("report", found="nothing to show", expected="traces or benchmark results", fix=fix)
    return page(title, sections)


def _of_windows(
    windows: Mapping[str, RoutingStatistics], placements: Mapping[str, Placement], view: View
) -> list[tuple[str, str]]:
    nodes, ranks_per_node, dispatch, layer = view
    name, newest = list(windows.items())[-1]
    ranks = nodes * ranks_per_node
    slots = next(iter(placements.values())).num_slots if placements else -(-newest.num_experts // max(ranks, 1)) * ranks
    _refuse_other_models(windows, placements, slots)
    if ranks < 1 or slots % ranks:
        fix = "pass --nodes and --ranks-per-node of the placement"
        raise mismatch("topology", found=f"{ranks} ranks", expected=f"a divisor of {slots} slots", fix=fix)
    topology = Topology(nodes, ranks_per_node, slots // ranks)
    start = linear_placement(newest.num_layers, newest.num_experts, slots, newest.layer_ids)
    plans = {BEFORE: plan_of(start, topology, dispatch)}
    for given, placement in placements.items():
        plans[given if given != BEFORE else f"{given} (file)"] = plan_of(placement, topology, dispatch)
    sections = [("Placements", _scores(plans, newest, name, dispatch))]
    known = all(map(known_from_loads, plans.values()))
    if known:
        sections.append(("Load of ranks", _heatmaps(plans, newest, name)))
    if newest.coactivation is not None:
        sections.append(("Co-activation, ordered by node", _pairs(plans, newest, layer)))
    if known and len(windows) > 1:
        sections.append(("Balancedness over windows", _over_time(plans, windows)))
    if len(plans) > 1:
        sections.append(("Moves", _moves(plans)))
    return sections


def _scores(plans: Mapping[str, Plan], window: RoutingStatistics, name: str, dispatch: str) -> str:
    rows = []
    for label, made in plans.items():
        known = known_from_loads(made)
        cells = [f"{balancedness(expected_rank_load(window.load, made)):.3f}" if known else "unknown"]
        cells += [
            "unknown" if one is None else f"{one:.3f}"
            for one in (recorded_steps(window, made), evened_steps(window, made)) if window.steps is not None
        ]  # fmt: skip
        if window.sample is not None and (window.sample >= 0).any():
            score = judge_draws(window.sample, made, 1, 0).mean()
            cells[0] = cells[0] if known else f"{score.balancedness:.3f}"
            cells += [f"{score.cross_node_copies:.3f}", f"{score.node_fan_out:.3f}", f"{score.busiest_ingress:.2f}"]
        rows.append([escape(label), *cells])
    heads = ["placement", "balancedness", "cross-node copies / token", "node fan-out", "busiest ingress / mean"]
    note = f"On window {name}, under dispatch {dispatch}. Figures on the window that a plan was made of flatter it."
    if window.steps is not None:
        heads[2:2] = ["of single steps", "of single steps with exact"]
        note += " A step waits for its own busiest rank: mean and max load of single steps are summed over all."
    return table(heads[: len(rows[0])], rows) + f'<p class="note">{escape(note)}</p>'


def _heatmaps(plans: Mapping[str, Plan], window: RoutingStatistics, name: str) -> str:
    """The engine's start and the newest placement, in the same colours."""
    shown = {label: _relative_load(plans[label], window) for label in dict.fromkeys([BEFORE, list(plans)[-1]])}
    most = max(float(one.max()) for one in shown.values())
    layers = [int(one) for one in window.layer_ids]
    figures = []
    for number, (label, relative) in enumerate(shown.items()):
        values = cell_values(f"load{number}", relative, layers, list(range(relative.shape[1])), ("layer", "rank"))
        drawn = matrix(diverging(relative, most), f"load of ranks, {label}", values=f"load{number}", stretch=True)
        figures.append(figure(drawn, f"{label}: busiest rank {relative.max():.2f} × the mean of its layer", values))
    note = f"Layers downwards, ranks across; selections of window {name}: blue below the layer's mean, red above."
    return f'<div class="pair heat">{"".join(figures)}</div><p class="note">{escape(note)}</p>'


def _pairs(plans: Mapping[str, Plan], window: RoutingStatistics, layer: int | None) -> str:
    assert window.coactivation is not None
    row = _layer_row(plans[BEFORE], window, layer)
    figures = []
    for label in dict.fromkeys([BEFORE, list(plans)[-1]]):
        made = plans[label]
        nodes = made.topology.node_of_slot
        order = np.argsort(nodes, kind="stable")
        experts = made.placement.phy2log[row][order]
        share = made.replica_weights[row][order]
        pairs = window.coactivation[row][np.ix_(experts, experts)] * np.outer(share, share)
        pairs[experts[:, None] == experts[None, :]] = 0.0
        inside = float(pairs[nodes[order][:, None] == nodes[order][None, :]].sum()) / max(float(pairs.sum()), 1e-300)
        edges = np.searchsorted(nodes[order], np.arange(made.topology.num_nodes + 1))
        squares = [(int(first), int(last)) for first, last in pairwise(edges)]
        drawn = matrix(sequential(pairs), f"co-activation, {label}", squares=squares)
        figures.append(figure(drawn, f"{label}: {inside:.1%} of pairs on one node"))
    note = (
        f"Layer {window.layer_ids[row]}: tokens that selected both experts, slots in order of nodes (orange squares)."
    )
    return f'<div class="pair">{"".join(figures)}</div><p class="note">{escape(note)}</p>'


def _over_time(plans: Mapping[str, Plan], windows: Mapping[str, RoutingStatistics]) -> str:
    series = {
        label: [balancedness(expected_rank_load(window.load, made)) for window in windows.values()]
        for label, made in plans.items()
    }
    note = f"{len(windows)} windows, oldest first: {', '.join(windows)}."
    return lines(series, "balancedness of every window") + f'<p class="note">{escape(note)}</p>'


def _moves(plans: Mapping[str, Plan]) -> str:
    rows = []
    for (before, old), (after, new) in pairwise(plans.items()):
        moved = moved_slots(new.placement, old.placement, new.topology)
        total = int(moved.sum())
        rows.append([
            f"{escape(before)} → {escape(after)}", str(total), f"{total / new.placement.phy2log.size:.1%}",
            str(int(moved.max())), str(int((moved > 0).sum())),
        ])  # fmt: skip
    return table(["from → to", "slots moved", "of all", "most in a layer", "layers touched"], rows)


def _serving(arms: Mapping[str, Sequence[Run]]) -> str:
    made = compare(arms)
    rows: dict[tuple[int | None, str], list[str]] = {}
    for cell in made.cells:
        limit = "none" if cell.concurrency is None else str(cell.concurrency)
        first = [limit, escape(cell.arm), str(cell.runs)]
        rows.setdefault((cell.concurrency, cell.arm), first).append(_serving_cell(cell))
    note = (
        "Median (least – most) of the runs. An arm is called better or worse than the first one only where an exact "
        f"rank-sum test, corrected for all {made.comparisons} comparisons (Holm), allows it at level {made.level:g}."
    )
    heads = ["concurrency", "arm", "runs", *HEADINGS.values()]
    return table(heads, list(rows.values())) + f'<p class="note">{note}</p>'


def _serving_cell(cell: Cell) -> str:
    if not cell.change:
        return cell.spread
    return f'{cell.spread}<br><span class="{cell.verdict.split()[0]}">{cell.change}</span>'


def _relative_load(made: Plan, window: RoutingStatistics) -> Floats:
    """[L, ranks] load relative to the layer's mean; 1 everywhere in a layer without load."""
    load = expected_rank_load(window.load, made)
    mean = load.mean(axis=1, keepdims=True)
    return np.where(mean > 0.0, load / np.where(mean > 0.0, mean, 1.0), 1.0)


def _layer_row(start: Plan, window: RoutingStatistics, layer: int | None) -> int:
    if layer is None:
        return int(_relative_load(start, window).max(axis=1).argmax())
    found = np.flatnonzero(window.layer_ids == layer)
    if not len(found):
        fix = "pass one of them, or leave it out"
        raise mismatch("--layer", found=layer, expected=f"one of {window.layer_ids.tolist()}", fix=fix)
    return int(found[0])


def _refuse_other_models(
    windows: Mapping[str, RoutingStatistics], placements: Mapping[str, Placement], slots: int
) -> None:
    newest = list(windows.values())[-1]
    expected = f"{newest.num_experts} experts in layers {newest.layer_ids.tolist()}"
    files: list[tuple[str, RoutingStatistics | Placement]] = [*windows.items(), *placements.items()]
    for name, one in files:
        found = f"{one.num_experts} experts in layers {one.layer_ids.tolist()}"
        if found != expected:
            raise mismatch(name, found=found, expected=expected, fix="pass files of one model")
    for name, placement in placements.items():
        if placement.num_slots != slots:
            found = f"{placement.num_slots} slots"
            fix = "pass placements of one EP group"
            raise mismatch(name, found=found, expected=f"{slots} as in the first placement", fix=fix)
