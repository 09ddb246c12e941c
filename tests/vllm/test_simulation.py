"""A real server whose routing is made by the workload generator."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from eplb_cpu_engines.meter import read_meter

from eplb_plugin.bench.engine import Eplb, Layout
from eplb_plugin.bench.server import Server
from serving.greedy import complete_all

pytestmark = pytest.mark.server

FACTOR = 1.6


def test_the_server_has_the_chosen_imbalance_until_the_plugin_mends_it(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    """Counted from the routing of real requests: max / mean over ranks, first as asked for, then near 1."""
    eplb = Eplb(0, window_size=32, step_interval=128)
    server = serve(
        "qwen3_moe", Layout(data_parallel=2), eplb, "policy: balanced\nbudget: {max_moved_slots: 32}\n",
        VLLM_MOE_ROUTING_SIMULATION_STRATEGY=f"eplb_plugin:factor={FACTOR},ranks=2",
        EPLB_METER_DIR=str(tmp_path), EPLB_METER_WINDOW="8",
    )  # fmt: skip
    server.wait_ready()
    for _ in range(60):
        complete_all(server)
        if "slots move, planned in" in server.text() and read_meter(tmp_path)["rebalances"] >= 2:
            break
    complete_all(server)
    meter = read_meter(tmp_path)
    by_window = (meter["selections"].max(axis=2) / meter["selections"].mean(axis=2)).mean(axis=1)
    assert by_window[0] == pytest.approx(FACTOR, abs=0.1)
    assert by_window[-3:].mean() < 1.2
