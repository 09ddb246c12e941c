"""The promise that matters most: the model's output does not change, however often experts are moved."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from eplb_cpu_engines.meter import read_meter

from eplb_plugin.bench.engine import Completion, Eplb, Load
from eplb_plugin.bench.load_generator import run_bench
from eplb_plugin.bench.server import Server
from eplb_plugin.bench.sglang import Sglang
from kept_state import metrics_of
from server_plugins import TRITON, python_path
from sglang_servers import CANARY, LAYOUT, REDUNDANT, SETTINGS, moves_finished, serve_until, serve_until_rebalanced

pytestmark = pytest.mark.server

OFTEN = Eplb(REDUNDANT, window_size=4, step_interval=4)


@pytest.fixture(scope="module")
def meter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("meter")


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is written there strikes the server."""
    return tmp_path_factory.mktemp("faults") / "wanted"


@pytest.fixture(scope="module")
def server(serve_shared: Callable[..., Server], meter: Path, faults: Path) -> Server:
    """Started by `python -m sglang.launch_server`; the other models' by `sglang serve`."""
    server = serve_shared(
        "qwen3_moe",
        LAYOUT,
        OFTEN,
        SETTINGS.format(policy="affinity"),
        arguments=["--enable-metrics", "--expert-balancedness-report-mode", "both"],
        engine=Sglang(launcher=True),
        EPLB_METER_DIR=str(meter),
        EPLB_METER_WINDOW="4",
        EPLB_FAULTS=str(faults),
        PYTHONPATH=python_path("sglang"),
        **CANARY,
        **TRITON,
    )
    server.wait_ready()
    return server


def test_output_is_unchanged_over_many_rebalances(
    server: Server, meter: Path, reference: Callable[[str], list[Completion]]
) -> None:
    """Greedy output of 16 prompts, 8 at a time, equals the Hugging Face model's over 50 rebalances amid decoding, with
    the plugin's Triton kernel."""
    serve_until_rebalanced(server, reference("qwen3_moe"), 50)
    assert "MiB of staging memory on cpu, at most 1 layers" in server.text()
    assert "dispatch weighted, token-owner groups of 2" in server.text()
    assert "launched by Triton: rows" in server.text()
    counted = read_meter(meter)
    assert counted["rebalances"] > 40, "the meter does not see the plugin's rebalances; its last window may be missing"
    slots, moved = 4 * (32 + REDUNDANT), counted["slots_moved"]
    assert moved > slots, f"only {moved} moves were seen in the server's maps: the test would not notice a wrong one"
    # both ranks see every token, and the statistics must not count it twice: the fullest window, since which steps are
    # recorded depends on how long moves take
    recorded = max(int(count) for count in re.findall(r" from (\d+) tokens", server.text()))
    assert 0.3 < recorded / counted["tokens"].max() < 1.4


def test_failures_leave_output_and_placement(
    server: Server, faults: Path, reference: Callable[[str], list[Completion]]
) -> None:
    """A planner that raises, then a rank that sends what it should not: refused by all; the next rebalance is not."""
    expected = reference("qwen3_moe")
    faults.write_text("planner")
    line = serve_until(server, "refused, the old placement stays", expected)
    assert "planning failed: RuntimeError: a fault was injected into the planner" in line
    faults.write_text("row")
    line = serve_until(server, r"migration \d+ refused after \d of", expected)
    assert "rank 0 refused" in line
    assert "rows differ from their source" in server.text()
    faults.write_text("")
    finished = moves_finished(server)
    serve_until(server, r"migration \d+: \d+ layers in", expected)
    assert moves_finished(server) > finished


def test_metrics_tell_what_the_plugin_did(server: Server) -> None:
    """Beside SGLang's own gauges, of the planning rank: rebalances as in its log, and what the last plan expects."""
    text = metrics_of(server)
    found = dict(re.findall(r"^(eplb_plugin_\w+)\{.*\} (\S+)$", text, re.MULTILINE))
    results = dict(re.findall(r"^eplb_plugin_rebalances_total\{.*result=\"(\w+)\".*\} (\S+)$", text, re.MULTILINE))
    assert float(results["accepted"]) >= 50
    assert float(results["refused"]) >= 1
    assert float(results["interrupted"]) >= 1
    assert float(found["eplb_plugin_moved_slots_total"]) > 0
    assert 0.5 < float(found["eplb_plugin_planned_balancedness"]) <= 1
    assert 0 < float(found["eplb_plugin_planned_cross_node_copies_per_token"]) < 1
    assert float(found["eplb_plugin_last_success_timestamp_seconds"]) > 1.7e9


def test_the_engines_own_report_keeps_working(server: Server) -> None:
    """SGLang's balancedness is in /metrics and in its log."""
    text = metrics_of(server)
    total, count = (
        sum(
            float(value)
            for value in re.findall(rf"^sglang:eplb_balancedness_{part}\{{.*\}} (\S+)$", text, re.MULTILINE)
        )
        for part in ("sum", "count")
    )
    assert 0.5 < total / count <= 1
    assert "current_pass_balancedness=" in server.text()


def test_the_load_generator_runs(server: Server, tmp_path: Path) -> None:
    """`python -m sglang.bench_serving` against the plugin."""
    figures = run_bench(server, Load(16, 4, input_tokens=32, output_tokens=16), tmp_path / "bench.json", lambda _: None)
    assert figures["output_tokens_per_second"] > 0
