"""Prometheus metrics of the planning rank, shown by the engine's /metrics where it collects those of its processes.

SGLang does so with --enable-metrics, vLLM with several API servers or if PROMETHEUS_MULTIPROC_DIR names a folder when
it is started.

Names are the schema that dashboards are made for; labels are few, so that a fleet can afford them.
"""

from __future__ import annotations

from functools import cache

from prometheus_client import Counter, Gauge, Summary

from ..runtime.outcome import Outcome, Served

# what a scrape shows of a model on several nodes after a few rebalances; rank_load only if the settings ask for it.
# resplits_total and early_rebalances_total are not among them: they are there only where windows leave room
NAMES = {
    f"eplb_plugin_{name}"
    for name in (
        "balancedness", "balancedness_per_step", "cross_node_fraction", "cross_node_copies_per_token",
        "left_out_rows_fraction", "planned_balancedness", "planned_cross_node_copies_per_token",
        "last_success_timestamp_seconds", "stalled",
        "stage_seconds_sum", "stage_seconds_count", "rebalances_total", "moved_slots_total", "moved_bytes_total",
        "rank_load",
    )
}  # fmt: skip


class Metrics:
    """One per process: a name can be registered once. Called with the outcome of every rebalance and re-split."""

    def __init__(self) -> None:
        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"eplb_plugin_{name}", text, ["model", *labels], multiprocess_mode="mostrecent")

        self.balancedness = gauge(
            "balancedness",
            "Mean over max rank load of the newest window under the placement that served it; stat: over layers.",
            "stat",
        )
        self.per_step = gauge(
            "balancedness_per_step",
            "Mean over max rank load, both summed over layers and single steps of the newest window, under the "
            "placement that served it; by: what chooses replicas, tables or exact.",
            "by",
        )
        self.rank_load = gauge(
            "rank_load", "Load of a rank in the newest window, relative to the layer's mean.", "layer", "rank"
        )
        self.crossing = gauge("cross_node_fraction", "Share of the copies of tokens to nodes that leave their own.")
        self.copies = gauge("cross_node_copies_per_token", "Copies to other nodes per token.")
        self.left_out = gauge(
            "left_out_rows_fraction", "Share of the newest window's rows that name an expert twice: in no count."
        )
        self.planned_balancedness = gauge(
            "planned_balancedness", "Mean over max rank load that the last plan expects, mean of layers."
        )
        self.planned_copies = gauge(
            "planned_cross_node_copies_per_token", "Copies to other nodes per token that the last plan expects."
        )
        self.last_success = gauge("last_success_timestamp_seconds", "When all ranks last accepted a plan.")
        self.stalled = gauge("stalled", "1 while a stage of a rebalance does not end.")
        self.stage = Summary("eplb_plugin_stage_seconds", "Time of the stages of rebalances.", ["model", "stage"])
        self.rebalances = Counter(
            "eplb_plugin_rebalances",
            "Rebalances by result: accepted, refused, skipped; interrupted: accepted, but not all experts were moved.",
            ["model", "result"],
        )
        self.resplits = Counter(
            "eplb_plugin_resplits",
            "Re-splits of replicas' shares by result: accepted, refused, skipped.",
            ["model", "result"],
        )
        self.early = Counter(
            "eplb_plugin_early_rebalances",
            "Rebalances that began before the interval's end, because windows were less even than planned.",
            ["model"],
        )
        self.moved = Counter("eplb_plugin_moved_slots", "Expert slots that got another expert.", ["model"])
        self.bytes = Counter("eplb_plugin_moved_bytes", "Weights that went to another rank for that.", ["model"])

    def __call__(self, outcome: Outcome) -> None:
        model = outcome.model
        self.stalled.labels(model).set(outcome.result == "stalled")
        if outcome.result == "stalled":
            return
        changes = self.resplits if outcome.change == "re-split" else self.rebalances
        changes.labels(model, outcome.result).inc()
        for stage, seconds in outcome.seconds.items():
            self.stage.labels(model, stage).observe(seconds)
        if outcome.served is not None:
            self._show_served(model, outcome.served)
        if outcome.shortfall is not None:
            self.early.labels(model).inc()
        assessment = outcome.assessment
        if assessment is None:
            return
        if assessment.copies is not None and assessment.crossing is not None:
            self.copies.labels(model).set(assessment.copies[0])
            self.crossing.labels(model).set(assessment.crossing[0])
        if outcome.result != "accepted":
            return
        self.last_success.labels(model).set_to_current_time()
        self.planned_balancedness.labels(model).set(assessment.balancedness[1])
        self.moved.labels(model).inc(assessment.moved_slots)
        self.bytes.labels(model).inc(assessment.moved_slots * outcome.expert_bytes)
        if assessment.copies is not None:
            self.planned_copies.labels(model).set(assessment.copies[1])

    def _show_served(self, model: str, served: Served) -> None:
        layers = served.balancedness
        for stat, value in (("min", layers.min()), ("mean", layers.mean()), ("max", layers.max())):
            self.balancedness.labels(model, stat).set(float(value))
        for by, even in served.per_step.items():
            self.per_step.labels(model, by).set(even)
        self.left_out.labels(model).set(served.left_out)
        if served.per_rank:
            for layer, loads in zip(served.layer_ids, served.rank_load, strict=True):
                for rank, load in enumerate(loads / max(float(loads.mean()), 1e-9)):
                    self.rank_load.labels(model, int(layer), rank).set(float(load))


@cache
def metrics() -> Metrics:
    """This process's, made at the first use: prometheus_client reads PROMETHEUS_MULTIPROC_DIR when it is imported."""
    return Metrics()
