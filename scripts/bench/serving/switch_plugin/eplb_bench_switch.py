"""In a server's workers: placements change when the benchmark says so, to what it says, and never else.

All placements of one server are planned from all traffic until the first of them was asked for, and from scratch, so
that none depends on the order in which the benchmark measures them. See `..placements`.

The engine looks replicas up by weighted tables, unless the placement is for `cover`, which maps by itself. Where a rule
is `hash`, the copies of an expert get equal shares of its table, which is what a hash over copies does.
"""

from __future__ import annotations

import functools
import json
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

logger = logging.getLogger("vllm.eplb_bench_switch")


def register() -> None:
    """vLLM's plugin entry point. The planner is imported by the worker only, after its device is set up: numba would
    break it before."""
    folder = os.environ.get("EPLB_BENCH_PLACEMENTS")
    if folder is None:
        return
    from vllm.v1.worker.worker_base import WorkerWrapperBase

    original = WorkerWrapperBase.init_device

    @functools.wraps(original)
    def init_device(self: Any) -> None:
        original(self)
        _install(Path(folder))

    WorkerWrapperBase.init_device = init_device


def _install(folder: Path) -> None:
    from eplb_plugin.engines.vllm.tables import Tables
    from eplb_plugin.runtime import rebalancer

    switch = _Switch(folder)
    rebalancer.propose = switch.propose  # type: ignore[attr-defined]
    filled = Tables.switch

    def fill(self: Any, layers: Any, plan: Any) -> None:
        filled(self, layers, plan)
        _choose_rule(self, layers, plan)

    Tables.switch = fill  # type: ignore[method-assign]


def _choose_rule(tables: Any, layers: Any, plan: Any) -> None:
    """A product maps by one rule from its start to its end; here layers change it with their placement."""
    from eplb_plugin.dispatch.kernels import CoverTables
    from eplb_plugin.engines.vllm import dispatch_hook

    cover = None if plan.cover_weights is None else CoverTables(plan, tables.owners, tables.rows.device)
    for index in layers:
        dispatch_hook._layers[tables.rows[index].data_ptr()].tables = None if cover is None else cover.layer(index)


class _Switch:
    """On the planning rank."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._done = 0  # number of the last order carried out
        self._window: Any = None  # what placements are planned from
        self._first: Any = None  # the engine's own placement

    def propose(self, entry: Any, in_force: Any, config: Any) -> tuple[Any, bytes]:
        """In place of planning: the placement that was ordered, or the one in force."""
        from eplb_plugin.runtime.outcome import Outcome
        from eplb_plugin.runtime.plan_codec import encode

        if self._first is None:
            self._first = in_force
        if not self._done and entry.history.has_tokens:
            newest = entry.history.newest
            self._window = newest if self._window is None else self._window.merge(newest)
        order = self._order()
        if order is None or self._window is None:
            return Outcome(entry.name, "skipped"), encode(in_force)
        self._done = order["number"]
        try:
            made = self._made(entry, config, order["policy"], order["dispatch"])
        except Exception as error:
            logger.exception("placement %s failed", order)
            self._answer({"number": self._done, "error": f"{type(error).__name__}: {error}"})
            return Outcome(entry.name, "refused"), encode(in_force)
        self._answer(self._facts(made, in_force))
        return Outcome(entry.name, "accepted"), encode(made)

    def _made(self, entry: Any, config: Any, policy: Any, dispatch: Any) -> Any:
        from eplb_plugin.planning.plan import plan

        if policy == "engine":
            return self._first
        made = plan(
            self._window,
            entry.topology,
            policy=policy,
            dispatch=dispatch,
            num_groups=entry.num_groups,
            options=config.plan_options,
        )
        if dispatch == "hash":
            made = replace(made, source_weights=None)
        return replace(made, dispatch=entry.dispatch)

    def _facts(self, made: Any, in_force: Any) -> dict[str, Any]:
        from eplb_plugin.runtime.outcome import assess

        moved = (made.placement.phy2log != in_force.placement.phy2log).sum()
        planned = assess(self._window, in_force, made).balancedness[1]
        return {"number": self._done, "digest": made.digest, "slots_changed": int(moved), "seconds": made.seconds,
                "planned_balancedness": planned}  # fmt: skip

    def _order(self) -> dict[str, Any] | None:
        """The newest order, if it has not been carried out; it is written atomically."""
        try:
            order = json.loads((self._folder / "order.json").read_text())
        except FileNotFoundError:
            return None
        return order if order["number"] > self._done else None

    def _answer(self, answer: dict[str, Any]) -> None:
        part = self._folder / "answer.part"
        part.write_text(json.dumps(answer))
        part.replace(self._folder / "answer.json")
