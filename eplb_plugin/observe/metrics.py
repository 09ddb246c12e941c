"""Prometheus metrics of the planning rank, shown by the engine's /metrics where it collects those of its processes.

SGLang does so with --enable-metrics, vLLM if PROMETHEUS_MULTIPROC_DIR names a folder when it is started.

Names are the schema that dashboards are made for; labels are few, so that a fleet can afford them.
"""

from __future__ import annotations

from functools import cache

from prometheus_client import Counter, Gauge

from ..outcome import Outcome


class Metrics:
    """One per process: a name can be registered once. Called with the outcome of every rebalance and re-split."""

    def __init__(self) -> None:
        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"eplb_plugin_{name}", text, ["model"], multiprocess_mode="mostrecent")

        self.balancedness = gauge("planned_balancedness", "Mean over max rank load that the last plan expects.")
        self.copies = gauge(
            "planned_cross_node_copies_per_token", "Copies to other nodes per token that the last plan expects."
        )
        self.planning_seconds = gauge("planning_seconds", "Time that the last plan took.")
        self.last_success = gauge("last_success_timestamp_seconds", "When all ranks last accepted a plan.")
        self.rebalances = Counter(
            "eplb_plugin_rebalances",
            "Rebalances by result: accepted, refused, skipped; interrupted: accepted, but not all experts were moved.",
            ["model", "result"],
        )
        self.resplits = Counter(
            "eplb_plugin_resplits",
            "Re-splits of the weights by result: accepted, refused, skipped.",
            ["model", "result"],
        )
        self.moved = Counter("eplb_plugin_moved_slots", "Expert slots that got another expert.", ["model"])

    def __call__(self, outcome: Outcome) -> None:
        changes = self.resplits if outcome.change == "re-split" else self.rebalances
        changes.labels(outcome.model, outcome.result).inc()
        assessment = outcome.assessment
        if outcome.result != "accepted" or assessment is None:
            return
        self.last_success.labels(outcome.model).set_to_current_time()
        self.balancedness.labels(outcome.model).set(assessment.balancedness[1])
        if outcome.change == "re-split":
            return
        self.planning_seconds.labels(outcome.model).set(assessment.seconds)
        self.moved.labels(outcome.model).inc(assessment.moved_slots)
        if assessment.copies is not None:
            self.copies.labels(outcome.model).set(assessment.copies[1])


@cache
def metrics() -> Metrics:
    """This process's, made at the first use: prometheus_client reads PROMETHEUS_MULTIPROC_DIR when it is imported."""
    return Metrics()
