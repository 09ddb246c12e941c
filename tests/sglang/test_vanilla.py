"""The test bed itself: SGLang's own EPLB on CPUs, in a server that has the plugin installed and not asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from eplb_cpu_engines.meter import read_meter

from eplb_plugin.bench.engine import Completion, Load
from eplb_plugin.bench.load_generator import run_bench
from eplb_plugin.bench.server import Server
from serving.greedy import complete_all, largest_difference
from sglang_servers import CANARY, EPLB, LAYOUT, REBALANCES, TOLERANCE

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def meter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("meter")


@pytest.fixture(scope="module")
def server(serve_shared: Callable[..., Server], meter: Path) -> Server:
    server = serve_shared(
        "qwen3_moe",
        LAYOUT,
        EPLB,
        EPLB_METER_DIR=str(meter),
        EPLB_METER_WINDOW="4",
        **CANARY,
    )
    server.wait_ready()
    return server


def test_the_test_bed_serves_the_models_output_while_experts_move(
    server: Server, meter: Path, reference: Callable[[str], list[Completion]]
) -> None:
    """Greedy output of 16 prompts equals the Hugging Face model's in every round, over at least 10 rebalances."""
    expected = reference("qwen3_moe")
    for _ in range(3):
        assert largest_difference(expected, complete_all(server)) < TOLERANCE
    counted = read_meter(meter)
    assert counted["rebalances"] >= REBALANCES
    assert counted["slots_moved"] > 4 * 48, "too few moves to notice a wrong one"
    assert counted["copies_per_token"].mean() > 0.5


def test_the_load_generator_runs(server: Server, tmp_path: Path) -> None:
    """`python -m sglang.bench_serving` against SGLang's own EPLB."""
    figures = run_bench(server, Load(16, 4, input_tokens=32, output_tokens=16), tmp_path / "bench.json", lambda _: None)
    assert figures["output_tokens_per_second"] > 0
    assert 0 < figures["ttft_p50"] <= figures["ttft_p99"]


def test_without_being_asked_the_plugin_does_nothing(server: Server) -> None:
    """No line of the plugin in the log of a server with SGLang's own algorithm; the test bed's are there."""
    lines = [line for line in server.text().splitlines() if "eplb_plugin" in line or "eplb-plugin" in line]
    assert lines == []
    assert server.text().count("eplb_cpu_engines is in force") >= 4
