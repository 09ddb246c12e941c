"""The newest windows of one model, and what they say of the next one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..errors import PluginError
from ..planning.forecast import forecast, forecast_error
from ..statistics import RoutingStatistics


class WindowHistory:
    """Kept on the planning rank only.

    Of older windows the pair counts are let go: they are the bulk ([L, E, E]), change slowly, and their samples stay.
    """

    def __init__(self, windows: int) -> None:
        self._kept = windows
        self._windows: list[RoutingStatistics] = []
        self._problem: PluginError | None = None

    def add(self, window: RoutingStatistics | None) -> None:
        """A window has ended; None where it was recorded on another rank."""
        self._problem = None
        if window is None:
            return
        older = [replace(one, coactivation=None) for one in self._windows]
        self._windows = [*older, window][-self._kept :]

    def refuse(self, problem: PluginError) -> None:
        """A window has ended that cannot be planned from: nothing may be planned until the next one."""
        self._problem = problem

    @property
    def has_tokens(self) -> bool:
        """Whether anything was routed in the newest window. Raises PluginError if that window was refused."""
        if self._problem is not None:
            raise self._problem
        return bool(self._windows) and bool(self._windows[-1].load.any())

    @property
    def newest(self) -> RoutingStatistics:
        """The window that has just ended; needs one that `has_tokens`."""
        return self._windows[-1]

    def expected(self, pairs: bool = True) -> RoutingStatistics:
        """The next window; needs one that `has_tokens`. pairs: see `forecast`."""
        return self._windows[-1] if len(self._windows) == 1 else forecast(self._windows, pairs=pairs)

    def expected_load(self) -> RoutingStatistics:
        """The next window's load alone, which takes a small part of the time."""
        return forecast([replace(one, coactivation=None, sample=None) for one in self._windows])

    def load_error(self) -> float | None:
        """Relative error of an expert's load in `expected()`, mean over layers; None before the second window."""
        error = forecast_error(self._windows) if self._windows else np.empty(0)
        return float(np.nanmean(error)) if np.isfinite(error).any() else None
