"""Affinity-aware expert placement for stock vLLM and SGLang. Importing this loads neither torch nor an engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import PluginError
from .placement import Placement
from .plan_types import Plan, PlanOptions
from .statistics import RoutingStatistics
from .topology import Topology

if TYPE_CHECKING:
    from .dispatch.exact.step import route_step
    from .dispatch.rules import route
    from .planning.forecast import forecast
    from .planning.plan import plan
    from .planning.resplit import resplit

__all__ = [
    "Placement",
    "Plan",
    "PlanOptions",
    "PluginError",
    "RoutingStatistics",
    "Topology",
    "forecast",
    "plan",
    "resplit",
    "route",
    "route_step",
]
__version__ = "0.2.0"

# plan and route compile numba kernels: their modules load on first use, so that reading a config or a file stays quick.
_LAZY = {
    "forecast": "planning.forecast", "plan": "planning.plan", "resplit": "planning.resplit", "route": "dispatch.rules",
    "route_step": "dispatch.exact.step",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
