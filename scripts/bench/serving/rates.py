"""The rule by which links are limited: known before the run, from a measured step without limits."""

from __future__ import annotations

import math

SHARE = 1 / 3  # of a limited step that a step without limits may take at most


def rate_by_rule(step_seconds: float, step_bytes: float, share: float = SHARE) -> float:
    """Mbit/s with which a step is expected to take 1 / share times as long as without limits.

    step_seconds: of a step without limits; step_bytes: that the busiest link sends or receives in one.
    """
    waiting = step_seconds * (1 / share - 1)
    return step_bytes * 8 / waiting / 1e6


def corrected(rate: float, unlimited_seconds: float, limited_seconds: float, share: float = SHARE) -> float:
    """The rate itself, if a step that was measured under it obeys the rule, else a lower one that is expected to."""
    waited = limited_seconds - unlimited_seconds
    wanted = unlimited_seconds * (1 / share - 1)
    if waited >= wanted:
        return rate
    return rate * max(waited / wanted, 0.25) * 0.95


def rounded(rate: float) -> float:
    """Two digits, downwards: a lower rate obeys the rule all the more."""
    unit = 10.0 ** (math.floor(math.log10(rate)) - 1)
    return float(f"{math.floor(rate / unit + 1e-9) * unit:.2g}")
