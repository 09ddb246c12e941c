"""Metrics: every outcome is counted, and in a process of its own they reach the collector of another one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from eplb_plugin.observe.metrics import metrics
from eplb_plugin.outcome import Assessment, Outcome

PLANNED = Assessment((0.7, 0.9), (2.5, 1.5), 12, 48, 1, 0.25, 1000)


def value(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(f"eplb_plugin_{name}", labels)


def test_outcomes_are_counted() -> None:
    """Only an accepted plan changes what the gauges say; new weights only the balance."""
    for outcome in (
        Outcome("m", "skipped"),
        Outcome("m", "accepted", PLANNED),
        Outcome("m", "refused", Assessment((0.7, 0.1), None, 99, 48, 0, 9.0, None)),
        Outcome("m", "accepted", Assessment((0.9, 0.95), None, 3, 48, 0, 0.5, None)),
        Outcome("m", "accepted", Assessment((0.9, 0.97), None, 0, 48, 0, 0.01, None), "re-split"),
        Outcome("m", "refused", None, "re-split"),
    ):
        metrics()(outcome)
    assert [value("rebalances_total", model="m", result=one) for one in ("accepted", "refused", "skipped")] == [2, 1, 1]
    assert [value("resplits_total", model="m", result=one) for one in ("accepted", "refused")] == [1, 1]
    assert value("planned_balancedness", model="m") == 0.97
    assert value("planned_cross_node_copies_per_token", model="m") == 1.5  # the newest that was known
    assert value("planning_seconds", model="m") == 0.5
    assert value("moved_slots_total", model="m") == 15
    assert (value("last_success_timestamp_seconds", model="m") or 0) > 1.7e9


def test_another_process_collects_them(tmp_path: Path) -> None:
    """As the engines' API servers do: the planning rank is a process that nobody scrapes."""
    code = (
        "from eplb_plugin.observe.metrics import metrics; from eplb_plugin.outcome import *; "
        "metrics()(Outcome('m', 'accepted', Assessment((0.7, 0.9), None, 12, 48, 1, 0.25, None)))"
    )
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(tmp_path))
    text = generate_latest(registry).decode()
    assert 'eplb_plugin_planned_balancedness{model="m"} 0.9' in text
    assert 'eplb_plugin_rebalances_total{model="m",result="accepted"} 1.0' in text
