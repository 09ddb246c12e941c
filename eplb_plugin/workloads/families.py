"""Families of expert loads: log-normal, gamma and power law, each with one spread (0 = even), and their fit to loads.

A layer's loads are taken at evenly spaced quantiles, (i + ½) / experts, not drawn: the same spread always gives the
same loads, and they grow smoothly with it. The families are those of DeepEP's pull request 393.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import mismatch

GRID = 48  # spreads that are tried before the search closes in
NARROWED = 40  # steps of the search; each takes a third off
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Family:
    """parameter: what the spread means; most: the largest spread in use; weights: (spread, experts) -> [E] relative
    loads, largest first, in any unit."""

    name: str
    parameter: str
    most: float
    weights: Callable[[float, int], Floats]

    def shares(self, spread: float, experts: int) -> Floats:
        """[E] shares of a layer's selections, largest first, without regard to how many a token makes."""
        weights = self.weights(spread, experts)
        return weights / weights.sum()


@dataclass(frozen=True)
class Fit:
    """spread: [L] best of every layer; sse: [L] Σ over experts of (load / mean - fitted / mean)², both in order of
    size."""

    family: Family
    spread: Floats
    sse: Floats


def _lognormal(spread: float, experts: int) -> Floats:
    normal = np.array([NormalDist().inv_cdf((i + 0.5) / experts) for i in reversed(range(experts))])
    return np.exp(spread * (normal - normal[0]))  # relative to the largest: no overflow


def _powerlaw(spread: float, experts: int) -> Floats:
    return np.arange(1, experts + 1, dtype=np.float64) ** -spread


def _gamma(spread: float, experts: int) -> Floats:
    """Quantiles of the gamma distribution with coefficient of variation `spread`, i.e. shape 1 / spread²."""
    if spread < 0.02:  # a normal distribution by then; the integral below would need a finer grid
        return 1.0 + spread * np.array([NormalDist().inv_cdf((i + 0.5) / experts) for i in reversed(range(experts))])
    shape = spread**-2
    wanted = (np.arange(experts)[::-1] + 0.5) / experts
    low, high = -40.0, 5.0  # log x, where the density of log x has its mass
    if shape > 1.0:
        low, high = math.log(shape) - 12.0 * spread - 4.0, math.log(shape) + 12.0 * spread
    log_x = np.linspace(low, high, 40_001)
    density = np.exp(shape * log_x - np.exp(log_x) - math.lgamma(shape))  # of log x
    below = math.exp(shape * log_x[0] - math.lgamma(shape + 1.0))  # the mass left of the grid, where exp(-x) is 1
    mass = below + np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2.0 * np.diff(log_x))])
    return np.exp(np.interp(wanted, mass, log_x))  # what lies further left is 0 for all purposes


FAMILIES = {
    family.name: family
    for family in (
        Family("lognormal", "sigma", 5.0, _lognormal),
        Family("gamma", "1/sqrt(shape)", 5.0, _gamma),
        Family("powerlaw", "alpha", 5.0, _powerlaw),
    )
}


def checked_family(name: str) -> Family:
    """The family of that name, or PluginError."""
    if name not in FAMILIES:
        fix = "pass one of these names"
        raise mismatch("family", found=repr(name), expected=f"one of {', '.join(FAMILIES)}", fix=fix)
    return FAMILIES[name]


def fit(load: ArrayLike, family: Family) -> Fit:
    """The spread with the least SSE for every layer of `load: [L, E]`. Layers without load raise PluginError."""
    loads = np.asarray(load, np.float64)
    if loads.ndim != 2 or not loads.size or (loads.sum(axis=1) <= 0.0).any():
        fix = "record until every layer has served tokens"
        raise mismatch("load", found="a layer without any", expected="selections in every layer", fix=fix)
    experts = loads.shape[1]
    grid = np.linspace(0.0, family.most, GRID)
    curves = np.stack([family.shares(spread, experts) for spread in grid])
    spreads, errors = [], []
    for row in loads:
        recorded = np.sort(row)[::-1] / row.mean()
        nearest = int(((curves * experts - recorded) ** 2).sum(axis=1).argmin())

        def error(spread: float, recorded: Floats = recorded) -> float:
            return float(((family.shares(spread, experts) * experts - recorded) ** 2).sum())

        low, high = grid[max(nearest - 1, 0)], grid[min(nearest + 1, GRID - 1)]
        for _ in range(NARROWED):
            third = (high - low) / 3.0
            if error(low + third) <= error(high - third):
                high -= third
            else:
                low += third
        spreads.append((low + high) / 2.0)
        errors.append(error(spreads[-1]))
    return Fit(family, np.array(spreads), np.array(errors))
