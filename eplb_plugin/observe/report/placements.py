"""What placements do to the newest window: evenness and crossings as bars over layers, and every figure in a table."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from ...plan_types import Plan
from ...planning.replicas.at_home import known_from_loads
from ...planning.score import LayerScores, expected_rank_load, layer_balancedness
from ...statistics import RoutingStatistics
from ..judging import evened_steps, judge_draws, recorded_steps
from .charts import Bar, Numbers, bars, side_by_side
from .given import Placed
from .markup import note, table


def of_placements(shown: Placed, dispatch: str) -> str:
    window = shown.newest
    scores = judged(shown.plans, window)
    balance = {label: balance_of(window, made, scores.get(label)) for label, made in shown.plans.items()}
    known = {label: values for label, values in balance.items() if values is not None}
    charts = [_chart("Evenness of ranks", "mean / busiest rank (1 = even)", known, 1.0)] if known else []
    if scores:
        copies = {label: one.cross_node_copies for label, one in scores.items()}
        charts.append(_chart("Crossings", "copies to other nodes per token", copies))
    return side_by_side(charts) + _table(shown, balance, scores, dispatch)


def judged(plans: Mapping[str, Plan], window: RoutingStatistics) -> dict[str, LayerScores]:
    """Every layer's figures by the window's tokens; empty where it has none."""
    if window.sample is None or not (window.sample >= 0).any():
        return {}
    return {label: judge_draws(window.sample, made, 1, 0) for label, made in plans.items()}


def balance_of(window: RoutingStatistics, made: Plan, scores: LayerScores | None) -> Numbers | None:
    """[L] balancedness by the window's loads, by its tokens where loads do not tell; None where neither does."""
    if known_from_loads(made):
        return layer_balancedness(expected_rank_load(window.load, made))
    return None if scores is None else scores.balancedness


def _chart(caption: str, unit: str, values: Mapping[str, Numbers], most: float | None = None) -> str:
    found = [Bar(label, float(one.mean()), float(one.min()), float(one.max())) for label, one in values.items()]
    return bars(f"{caption}, mean of the layers (line: least to most of a layer)", unit, {"": found}, most)


def _table(
    shown: Placed, balance: Mapping[str, Numbers | None], scores: Mapping[str, LayerScores], dispatch: str
) -> str:
    window, rows = shown.newest, []
    for label, made in shown.plans.items():
        values = balance[label]
        cells = ["unknown" if values is None else f"{values.mean():.3f}"]
        if window.steps is not None:
            steps = recorded_steps(window, made), evened_steps(window, made)
            cells += ["unknown" if one is None else f"{one:.3f}" for one in steps]
        if label in scores:
            score = scores[label].mean()
            cells += [f"{score.cross_node_copies:.3f}", f"{score.node_fan_out:.3f}", f"{score.busiest_ingress:.2f}"]
        rows.append([escape(label), *cells])
    heads = ["placement", "balancedness", "cross-node copies / token", "node fan-out", "busiest ingress / mean"]
    told = f"On window {shown.newest_name}, under dispatch {dispatch}. Figures on the window that a plan was made of "
    told += "flatter it."
    if window.steps is not None:
        heads[2:2] = ["of single steps", "of single steps with exact"]
        told += " A step waits for its own busiest rank: mean and max load of single steps are summed over all."
    return table(heads[: len(rows[0])], rows) + note(told)
