"""Chains of plans over windows of drifting traffic, and what re-split weights can reach.

Chains: the router's topics drift from window to window. In every window each arm may plan from what it has seen so
far; its plan is judged, by routing tokens, on the window that follows. Warm arms start from their own last plan.

Noise: expert loads alone, every window ±15 % (log-normal, independent) around the same rates. A placement is made from
8 windows; weights are then solved again, for the window that is judged, for the one before it, or for a forecast.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from eplb_plugin import Plan, PlanOptions, RoutingStatistics, Topology, forecast, plan, resplit
from eplb_plugin.planning.score import balancedness, expected_rank_load, judge, moved_slots
from eplb_plugin.workloads.routing import ClusteredRouter

from .output import output_parser, put_out

TOPOLOGY = Topology(4, 8, 9)
EXPERTS, TOP_K, TOKENS, HISTORY = 256, 8, 8192, 8
NOISE, SPREAD, NOISE_WINDOWS = 0.15, 0.36, 4
NOISE_CLUSTERS = {"V3/32: 288 slots": Topology(4, 8, 9), "V3/64: 320 slots": Topology(8, 8, 5)}
RULES = ("hash", "weighted", "cover")


class Seen(NamedTuple):
    """What an arm may plan from: the window's number, all windows until now, its own last plan."""

    number: int
    windows: list[RoutingStatistics]
    last: Plan | None


Arm = Callable[..., Plan]


def solve(statistics: RoutingStatistics, rule: Any, previous: Plan | None = None, **options: Any) -> Plan:
    return plan(statistics, TOPOLOGY, dispatch=rule, previous=previous, options=PlanOptions(**options))


def warm(share: float) -> Arm:
    """Never more than `share` of all slots."""

    def planned(seen: Seen, rule: str, **options: Any) -> Plan:
        window = seen.windows[-1]
        total = int(share * TOPOLOGY.num_slots * window.num_layers)
        return solve(window, rule, seen.last, max_moved_slots_total=total, **options)

    return planned


def with_forecast(seen: Seen, rule: str) -> Plan:
    history = seen.windows[-HISTORY:]
    return warm(0.1)(seen._replace(windows=[forecast(history)]), rule)


def now_and_then(seen: Seen, rule: str) -> Plan:
    """A repair every third window, new weights in between."""
    if seen.last is None or seen.number % 3 == 0:
        return warm(0.1)(seen, rule)
    return resplit(seen.last, seen.windows[-1])


ARMS: dict[str, Arm] = {
    "vanilla": lambda seen, rule: plan(seen.windows[-1], TOPOLOGY, policy="deepseek", dispatch="hash"),
    "full": lambda seen, rule: solve(seen.windows[-1], rule),
    "fast": lambda seen, rule: solve(seen.windows[-1], rule, effort="fast"),
    "first plan kept": lambda seen, rule: seen.last or solve(seen.windows[-1], rule),
    "first plan, re-split": lambda seen, rule: (
        resplit(seen.last, seen.windows[-1]) if seen.last else solve(seen.windows[-1], rule)
    ),
    "first plan, re-split for a forecast": lambda seen, rule: (
        resplit(seen.last, forecast(seen.windows[-HISTORY:])) if seen.last else solve(seen.windows[-1], rule)
    ),
    "warm, 5 %": warm(0.05),
    "warm, 10 %": warm(0.1),
    "warm, 10 %, fast": lambda seen, rule: warm(0.1)(seen, rule, effort="fast"),
    "warm, no bound": lambda seen, rule: solve(seen.windows[-1], rule, seen.last),
    "warm, 10 %, forecast": with_forecast,
    "warm, 10 %, each 3rd; re-split": now_and_then,
}


def traffic(layers: int, windows: int, drift: float) -> list[np.ndarray]:
    """[layers, tokens, k] of every window; `drift`: of the topic mixture, from the first to the last."""
    router = ClusteredRouter(layers, EXPERTS, TOP_K, num_topics=24)
    return [router.drifted(drift * t / (windows - 1)).window(TOKENS, t) for t in range(windows)]


def run_chain(arm: Arm, rule: str, tokens: list[np.ndarray], windows: list[RoutingStatistics]) -> list[dict[str, Any]]:
    """A row of figures for every window but the last, on which only is judged."""
    source = np.random.default_rng(0).integers(0, TOPOLOGY.num_ranks, TOKENS)
    rows, last = [], None
    for now in range(len(windows) - 1):
        began = time.thread_time()
        made = arm(Seen(now, windows[: now + 1], last), rule)
        seconds = time.thread_time() - began
        moved = 0.0 if last is None else moved_slots(made.placement, last.placement, TOPOLOGY).mean()
        figures = judge(tokens[now + 1], source, made)
        rows.append(
            {
                "copies": figures.cross_node_copies,
                "balance": figures.balancedness,
                "ingress": figures.busiest_ingress,
                "moved": float(moved) / TOPOLOGY.num_slots,
                "ms_per_layer": 1000.0 * seconds / windows[now].num_layers,
            }
        )
        last = made
    return rows


def chains(layers: int, count: int, drift: float, rules: list[str]) -> list[dict[str, Any]]:
    tokens = traffic(layers, count, drift)
    windows = [RoutingStatistics.from_topk(rows, EXPERTS) for rows in tokens]
    results = []
    for rule in rules:
        for name, arm in ARMS.items():
            run_chain(arm, rule, [rows[:1] for rows in tokens[:3]], [_first_layer(window) for window in windows[:3]])
            results.append({"rule": rule, "arm": name, "windows": run_chain(arm, rule, tokens, windows)})
    return results


def _first_layer(window: RoutingStatistics) -> RoutingStatistics:
    """Enough to compile everything before anything is timed."""
    assert window.coactivation is not None
    assert window.sample is not None
    return RoutingStatistics(window.load[:1], window.coactivation[:1], window.sample[:1], window.num_tokens[:1])


def noise(layers: int, seeds: int) -> list[dict[str, Any]]:
    """What weights can do against ±15 % noise; balance as planned from the judged window's loads."""
    found: dict[tuple[str, str, str], list[float]] = {}
    for seed in range(seeds):
        rng = np.random.default_rng([seed, 3])
        rate = np.exp(SPREAD * rng.standard_normal((layers, EXPERTS))) * 256
        shape = (HISTORY + NOISE_WINDOWS, *rate.shape)
        load = rng.poisson(rate * np.exp(NOISE * rng.standard_normal(shape))).astype(float)
        for cluster, topology in NOISE_CLUSTERS.items():
            for rule in ("hash", "weighted", "cover"):
                start = forecast([RoutingStatistics(window) for window in load[:HISTORY]])
                made = plan(start, topology, policy="balanced", dispatch=rule)
                for now in range(HISTORY, len(load)):
                    history = [RoutingStatistics(window) for window in load[now - HISTORY : now]]
                    weights = {
                        "as planned": made,
                        "for the window before": resplit(made, history[-1]),
                        "for a forecast": resplit(made, forecast(history)),
                        "for the judged window": resplit(made, RoutingStatistics(load[now])),
                    }
                    for name, one in weights.items():
                        balance = balancedness(expected_rank_load(load[now], one))
                        found.setdefault((cluster, rule, name), []).append(balance)
    return [
        {"cluster": cluster, "rule": rule, "weights": name, "balance": float(np.mean(values))}
        for (cluster, rule, name), values in found.items()
    ]


def show(results: dict[str, Any]) -> None:
    console = Console(width=150)
    for rule in dict.fromkeys(row["rule"] for row in results["chains"]):
        table = Table(
            "arm", "copies", "last third", "vs full", "balance", "last third", "ingress", "moved", "ms / layer",
            title=f"{rule}: held-out, mean over windows",
        )  # fmt: skip
        rows = [row for row in results["chains"] if row["rule"] == rule]
        full = next(row["windows"] for row in rows if row["arm"] == "full")
        for row in rows:
            windows = row["windows"]
            late = windows[-max(len(windows) // 3, 1) :]

            def mean(name: str, part: list[dict[str, Any]]) -> float:
                return float(np.mean([figures[name] for figures in part]))

            late_full = mean("copies", full[-len(late) :])
            table.add_row(
                row["arm"], f"{mean('copies', windows):.3f}", f"{mean('copies', late):.3f}",
                f"{100 * (mean('copies', late) / late_full - 1):+.1f} %", f"{mean('balance', windows):.3f}",
                f"{mean('balance', late):.3f}", f"{mean('ingress', windows):.2f}",
                f"{100 * mean('moved', windows[1:]):.1f} %",
                f"{np.median([figures['ms_per_layer'] for figures in windows[1:]]):.2f}",
            )  # fmt: skip
        console.print(table)
    table = Table("cluster", "rule", "weights", "balance", title="±15 % noise: loads only, placement from 8 windows")
    for row in results["noise"]:
        table.add_row(row["cluster"], row["rule"], row["weights"], f"{row['balance']:.4f}")
    console.print(table)


def main() -> int:
    parser = output_parser("bench_drift")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--windows", type=int, default=12)
    parser.add_argument("--drift", type=float, default=0.5, help="of the topic mixture, from first to last window")
    parser.add_argument("--rules", nargs="+", default=list(RULES), choices=RULES)
    parser.add_argument("--noise-layers", type=int, default=58)
    parser.add_argument("--seeds", type=int, default=2, help="random loads of the noise study")
    options = parser.parse_args()
    results = {
        "layers": options.layers,
        "drift": options.drift,
        "chains": chains(options.layers, options.windows, options.drift, options.rules),
        "noise": noise(options.noise_layers, options.seeds),
    }
    return put_out(results, options, lambda: show(results))


if __name__ == "__main__":
    sys.exit(main())
