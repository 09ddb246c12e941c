"""Held-out balance of plans made from a prediction of the next window, for every way to predict it.

Traffic is synthetic: log-normal expert loads (max/mean about 2.5), every window's experts deviate from them by ±15 %
(log-normal, independent), selections are Poisson. A prediction sees 8 windows; the plan made from it is judged on the
9th. `rate known` predicts what only an oracle knows, the 9th window's loads before noise: the ceiling.
The ways that lost live here only; `eplb_plugin.forecast` is the one that won.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from eplb_plugin import RoutingStatistics, Topology, forecast, plan
from eplb_plugin.planning.score import balancedness, expected_rank_load

from .output import output_parser, put_out

Counts = NDArray[Any]

LAYERS, EXPERTS, WINDOWS = 58, 256, 8
SPREAD, NOISE = 0.36, 0.15  # log-normal sigmas: between experts, and of one expert from window to window
CLUSTERS = {"V3/32: 288 slots": Topology(4, 8, 9), "V3/64: 320 slots": Topology(8, 8, 5)}
PER_EXPERT = (16, 256, 2048)  # selections per expert and window
# share of other, unrelated traffic in window t, t = 8 being the one to predict
TRAFFIC = {
    "noise": lambda t: 0.0 * t,
    "drift": lambda t: t / 24,
    "change 1 window ago": lambda t: 1.0 * (t >= WINDOWS - 1),
    "change 2 windows ago": lambda t: 1.0 * (t >= WINDOWS - 2),
    "change 4 windows ago": lambda t: 1.0 * (t >= WINDOWS - 4),
    "returning": lambda t: 1.0 * ((WINDOWS - t) // 3 % 2),
}


class Drawn(NamedTuple):
    seen: np.ndarray  # [W, L, E] counts
    following: np.ndarray  # [L, E] counts of the window to predict
    rate: np.ndarray  # [L, E] its loads before noise


def draw(kind: str, per_expert: int, seed: int) -> Drawn:
    rng = np.random.default_rng([seed, per_expert])
    here, there = np.exp(SPREAD * rng.standard_normal((2, LAYERS, EXPERTS)))
    away = TRAFFIC[kind](np.arange(WINDOWS + 1))[:, None, None]
    rate = here ** (1 - away) * there**away
    rate = per_expert * rate / rate.mean(axis=2, keepdims=True)
    counts = rng.poisson(rate * np.exp(NOISE * rng.standard_normal(rate.shape))).astype(float)
    return Drawn(counts[:-1], counts[-1], rate[-1])


def last(seen: Counts) -> Counts:
    return seen[-1]


def mean(seen: Counts) -> Counts:
    return seen.mean(axis=0)


def ewma(seen: Counts, gain: float) -> Counts:
    weights = (1 - gain) ** np.arange(len(seen))[::-1]
    return np.tensordot(weights / weights.sum(), seen, axes=1)


def fitted_ewma(seen: Counts) -> Counts:
    """The gain that would have predicted the seen windows best."""

    def error(gain: float) -> float:
        return sum(((ewma(seen[:t], gain) ** 0.5 - seen[t] ** 0.5) ** 2).sum() for t in range(2, len(seen)))

    return ewma(seen, min((0.001, 0.1, 0.2, 0.3, 0.5, 0.7, 0.999), key=error))


def trend(seen: Counts, damping: float) -> Counts:
    """Straight line by least squares, its slope damped."""
    t = np.arange(len(seen)) - (len(seen) - 1) / 2
    slope = np.tensordot(t, seen, axes=1) / (t @ t)
    return np.maximum(seen.mean(axis=0) + damping * slope * (len(seen) + 1) / 2, 0)


def shrunk(counts: Counts) -> Counts:
    """Gamma-Poisson empirical Bayes: towards the mean over the layer's experts, as far as counting noise asks for."""
    centre, variance = counts.mean(axis=1, keepdims=True), counts.var(axis=1, keepdims=True)
    shape = centre**2 / np.maximum(variance - centre, 1e-9)
    return (counts + shape) * centre / (centre + shape)


def combined(seen: Counts) -> Counts:
    return forecast([RoutingStatistics(window) for window in seen]).load


WAYS: dict[str, Callable[[Counts], Counts]] = {
    "last window": last,
    "mean": mean,
    "EWMA .3": lambda seen: ewma(seen, 0.3),
    "EWMA .5": lambda seen: ewma(seen, 0.5),
    "EWMA fitted": fitted_ewma,
    "trend": lambda seen: trend(seen, 1.0),
    "trend, damped": lambda seen: trend(seen, 0.5),
    "shrunk last": lambda seen: shrunk(seen[-1]),
    "shrunk mean": lambda seen: shrunk(seen.sum(axis=0)),
    "shrunk forecast": lambda seen: shrunk(combined(seen)),
    "forecast": combined,
}
ORACLE = "rate known"


def held_out(load: Counts, following: Counts, topology: Topology) -> float:
    made = plan(RoutingStatistics(load), topology, policy="balanced", dispatch="hash")
    return balancedness(expected_rank_load(following, made))


def measure(kind: str, per_expert: int, seeds: int) -> dict[str, dict[str, float]]:
    """{cluster: {way: held-out balance, mean over seeds}}"""
    found: dict[str, dict[str, list[float]]] = {cluster: {way: [] for way in [*WAYS, ORACLE]} for cluster in CLUSTERS}
    for seed in range(seeds):
        drawn = draw(kind, per_expert, seed)
        predictions = {way: predict(drawn.seen) for way, predict in WAYS.items()} | {ORACLE: drawn.rate}
        for cluster, topology in CLUSTERS.items():
            for way, load in predictions.items():
                found[cluster][way].append(held_out(load, drawn.following, topology))
    return {cluster: {way: float(np.mean(values)) for way, values in row.items()} for cluster, row in found.items()}


def show(results: list[dict[str, Any]]) -> None:
    for cluster in CLUSTERS:
        ways = [*WAYS, ORACLE]
        table = Table("traffic", "per expert", *ways, title=f"held-out balance, {cluster}")
        for row in results:
            values = row["balance"][cluster]
            best = max(value for way, value in values.items() if way != ORACLE)
            cells = [f"[bold]{values[w]:.3f}[/]" if values[w] == best else f"{values[w]:.3f}" for w in ways]
            table.add_row(row["traffic"], str(row["selections_per_expert"]), *cells)
        means = [np.mean([row["balance"][cluster][way] for row in results]) for way in ways]
        worst = [max(row["balance"][cluster][ORACLE] - row["balance"][cluster][way] for row in results) for way in ways]
        table.add_section()
        table.add_row("mean", "", *(f"{value:.3f}" for value in means))
        table.add_row("largest loss to the ceiling", "", *(f"{value:.3f}" for value in worst))
        Console(width=180).print(table)


def main() -> int:
    parser = output_parser("bench_forecast")
    parser.add_argument("--seeds", type=int, default=4)
    options = parser.parse_args()
    results = [
        {"traffic": kind, "selections_per_expert": size, "balance": measure(kind, size, options.seeds)}
        for kind in TRAFFIC
        for size in PER_EXPERT
    ]
    table = {"seeds": options.seeds, "layers": LAYERS, "experts": EXPERTS, "results": results}
    return put_out(table, options, lambda: show(results))


if __name__ == "__main__":
    sys.exit(main())
