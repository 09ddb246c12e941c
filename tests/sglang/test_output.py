"""The promise that matters most: the model's output does not change, however often experts are moved."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from eplb_cpu_engines.meter import read_meter

from serving.bench import run_bench
from serving.engine import Completion, Eplb, Layout, Load
from serving.greedy import complete_all, largest_difference
from serving.server import Server
from serving.sglang import Sglang

pytestmark = pytest.mark.server

LAYOUT = Layout(tensor_parallel=2)
REDUNDANT = 16  # many, but not every expert on every rank, so that experts do move
EPLB = Eplb(REDUNDANT, window_size=8, step_interval=8)
SETTINGS = "policy: {policy}\ntopology: {{nodes: 2, ranks_per_node: 1}}\nsample_rows: 1024\n"
# fp32 sums are ordered by the placement; a wrong expert changes log-probabilities by orders of magnitude more
TOLERANCE = 1e-4
REBALANCES = 10
CANARY = {"SGLANG_EXPERT_LOCATION_UPDATER_CANARY": "1"}  # SGLang itself checks every slot after every move


def moves_planned(server: Server) -> list[int]:
    """Slots that each rebalance moves, from the planning rank's log."""
    return [int(count) for count in re.findall(r"(\d+) of \d+ slots move", server.text())]


def serve_until_rebalanced(server: Server, expected: list[Completion]) -> None:
    """Rounds of correct output over REBALANCES rebalances, and at least three rounds."""
    rounds = 0
    while len(moves_planned(server)) < REBALANCES or rounds < 3:
        assert rounds < 40, f"only {len(moves_planned(server))} rebalances in {rounds} rounds"
        assert largest_difference(expected, complete_all(server)) < TOLERANCE
        rounds += 1
    assert "refused" not in server.text()


@pytest.fixture(scope="module")
def meter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("meter")


@pytest.fixture(scope="module")
def server(serve_shared: Callable[..., Server], meter: Path) -> Server:
    """Started by `python -m sglang.launch_server`; the next test's by `sglang serve`."""
    server = serve_shared(
        "qwen3_moe",
        LAYOUT,
        EPLB,
        SETTINGS.format(policy="affinity"),
        arguments=["--enable-metrics", "--expert-balancedness-report-mode", "both"],
        engine=Sglang(launcher=True),
        EPLB_METER_DIR=str(meter),
        EPLB_METER_WINDOW="4",
        **CANARY,
    )
    server.wait_ready()
    return server


def test_output_is_unchanged_over_many_rebalances(
    server: Server, meter: Path, reference: Callable[[str], list[Completion]]
) -> None:
    """Greedy output of 16 prompts equals the Hugging Face model's in every round, over at least 10 rebalances."""
    serve_until_rebalanced(server, reference("qwen3_moe"))
    counted = read_meter(meter)
    slots, moved = 4 * (32 + REDUNDANT), counted["slots_moved"]
    assert moved > slots, f"only {moved} moves were seen in the server's maps: the test would not notice a wrong one"
    # both ranks see every token, and the statistics must not count it twice
    recorded = np.array([int(count) for count in re.findall(r" from (\d+) tokens", server.text())])
    assert 0.6 < recorded[recorded > 0].mean() / (2 * counted["tokens"].mean()) < 1.6


def test_the_engines_own_report_keeps_working(server: Server) -> None:
    """SGLang's balancedness is in /metrics and in its log."""
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    (total,) = re.findall(r"^sglang:eplb_balancedness_sum\{.*\} (\S+)$", text, re.MULTILINE)
    (count,) = re.findall(r"^sglang:eplb_balancedness_count\{.*\} (\S+)$", text, re.MULTILINE)
    assert 0.5 < float(total) / float(count) <= 1
    assert "current_pass_balancedness=" in server.text()


def test_the_load_generator_runs(server: Server, tmp_path: Path) -> None:
    """`python -m sglang.bench_serving` against the plugin."""
    figures = run_bench(server, Load(16, 4, input_tokens=32, output_tokens=16), tmp_path / "bench.json", lambda _: None)
    assert figures["output_tokens_per_second"] > 0


@pytest.mark.parametrize(
    ("model", "policy", "arguments"),
    [
        pytest.param("glm4_moe", "affinity", ["--eplb-rebalance-layers-per-chunk", "1"], id="glm-dense-layer-chunks"),
        pytest.param("qwen3_moe", "balanced", [], id="balanced", marks=pytest.mark.full),
        pytest.param("qwen3_moe", "deepseek", [], id="deepseek", marks=pytest.mark.full),
    ],
)
def test_other_models_chunks_and_policies(
    model: str,
    policy: str,
    arguments: list[str],
    serve: Callable[..., Server],
    reference: Callable[[str], list[Completion]],
) -> None:
    """The same with a dense first layer, moved one layer per step, and with policies that plan by load only."""
    server = serve(model, LAYOUT, EPLB, SETTINGS.format(policy=policy), arguments=arguments, **CANARY)
    server.wait_ready()
    serve_until_rebalanced(server, reference(model))
    assert sum(moves_planned(server)) > 0
