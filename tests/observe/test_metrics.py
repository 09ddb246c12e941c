"""Metrics: every outcome is counted, and in a process of its own they reach the collector of another one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from eplb_plugin.observe.metrics import NAMES, metrics
from eplb_plugin.runtime.drift import Shortfall
from eplb_plugin.runtime.outcome import Assessment, Outcome, Served

PLANNED = Assessment((0.7, 0.9), (2.5, 1.5), (0.8, 0.6), 12, 48, 1, 0.25, 1000)


def value(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(f"eplb_plugin_{name}", labels)


def served(per_rank: bool = False) -> Served:
    """Layer 3 as uneven as it can be on two ranks, layer 5 even."""
    return Served(np.array([[8.0, 0.0], [4.0, 4.0]]), np.array([3, 5], np.int32), per_rank, 0.25, {"tables": 0.5})


def test_outcomes_are_counted() -> None:
    """Only an accepted plan changes what the gauges say of plans."""
    for outcome in (
        Outcome("m", "skipped"),
        Outcome("m", "accepted", PLANNED, seconds={"snapshot": 0.1, "plan": 0.25}, expert_bytes=1000),
        Outcome("m", "refused", Assessment((0.7, 0.1), None, None, 99, 48, 0, 9.0, None)),
        Outcome("m", "accepted", Assessment((0.9, 0.95), None, None, 3, 48, 0, 0.5, None), seconds={"plan": 0.5}),
        Outcome("m", "accepted", Assessment((0.9, 0.97), None, None, 0, 48, 0, 0.01, None), change="re-split"),
        Outcome("m", "refused", change="re-split", shortfall=Shortfall(0.6, 0.9, 2)),
    ):
        metrics()(outcome)
    assert value("early_rebalances_total", model="m") == 1
    assert [value("rebalances_total", model="m", result=one) for one in ("accepted", "refused", "skipped")] == [2, 1, 1]
    assert [value("resplits_total", model="m", result=one) for one in ("accepted", "refused")] == [1, 1]
    assert value("planned_balancedness", model="m") == 0.97
    assert value("planned_cross_node_copies_per_token", model="m") == 1.5  # the newest that was known
    assert value("cross_node_copies_per_token", model="m") == 2.5
    assert value("cross_node_fraction", model="m") == 0.8
    assert value("stage_seconds_sum", model="m", stage="plan") == 0.75
    assert value("stage_seconds_count", model="m", stage="plan") == 2
    assert value("stage_seconds_sum", model="m", stage="snapshot") == 0.1
    assert value("moved_slots_total", model="m") == 15
    assert value("moved_bytes_total", model="m") == 12_000
    assert value("stalled", model="m") == 0
    assert (value("last_success_timestamp_seconds", model="m") or 0) > 1.7e9


def test_how_the_window_was_served() -> None:
    """Balancedness over layers; every layer and rank only if the settings ask for it; rows that were left out."""
    metrics()(Outcome("w", "accepted", PLANNED, served()))
    assert value("left_out_rows_fraction", model="w") == 0.25
    assert value("balancedness_per_step", model="w", by="tables") == 0.5
    assert value("balancedness_per_step", model="w", by="exact") is None
    assert [value("balancedness", model="w", stat=one) for one in ("min", "mean", "max")] == [0.5, 0.75, 1.0]
    assert value("rank_load", model="w", layer="3", rank="0") is None
    metrics()(Outcome("w", "refused", None, served(per_rank=True)))
    assert [value("rank_load", model="w", layer="3", rank=rank) for rank in ("0", "1")] == [2.0, 0.0]
    assert value("rank_load", model="w", layer="5", rank="1") == 1.0


def test_the_names_are_those_that_are_shown() -> None:
    """The list that dashboards and server tests are checked against."""
    metrics()(Outcome("n", "accepted", PLANNED, served(per_rank=True), seconds={"plan": 0.5}, expert_bytes=1))
    shown = {sample.name for family in REGISTRY.collect() for sample in family.samples if "model" in sample.labels}
    ours = {name for name in shown if name.startswith("eplb_plugin_") and not name.endswith("_created")}
    assert ours - {"eplb_plugin_resplits_total", "eplb_plugin_early_rebalances_total"} == NAMES


def test_a_stalled_rebalance_is_shown_until_the_next_outcome() -> None:
    """It is no result of its own: the rebalance may still end."""
    metrics()(Outcome("s", "stalled"))
    assert value("stalled", model="s") == 1
    assert value("rebalances_total", model="s", result="stalled") is None
    metrics()(Outcome("s", "refused"))
    assert value("stalled", model="s") == 0


def test_another_process_collects_them(tmp_path: Path) -> None:
    """As the engines' API servers do: the planning rank is a process that nobody scrapes."""
    code = (
        "from eplb_plugin.observe.metrics import metrics; from eplb_plugin.runtime.outcome import *; "
        "metrics()(Outcome('m', 'accepted', Assessment((0.7, 0.9), None, None, 12, 48, 1, 0.25, None),"
        " seconds={'plan': 0.5}))"
    )
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(tmp_path))
    text = generate_latest(registry).decode()
    assert 'eplb_plugin_planned_balancedness{model="m"} 0.9' in text
    assert 'eplb_plugin_rebalances_total{model="m",result="accepted"} 1.0' in text
    assert 'eplb_plugin_stage_seconds_sum{model="m",stage="plan"} 0.5' in text
