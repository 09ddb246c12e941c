"""A server that keeps its state: recorded while it serves, with its metrics, and another begins where it ended."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from eplb_plugin.bench.engine import Completion, Eplb, Layout
from eplb_plugin.bench.server import Server
from eplb_plugin.statistics import RoutingStatistics
from kept_state import (
    PER_RANK,
    STILL,
    begins_where_it_ended,
    holds_single_steps,
    record,
    serve_until,
    shows_every_metric,
)

pytestmark = pytest.mark.server

LAYOUT = Layout(data_parallel=2)
EPLB = Eplb(16, window_size=4, step_interval=8)
SETTINGS = "topology: {{nodes: 2}}\nsample_rows: 1024\nforecast_windows: 1\nstate_directory: {folder}\n"
SERVERS = ["--api-server-count", "2"]  # vLLM then collects the metrics of all its processes


def test_recorded_shown_and_taken_up_again(
    serve: Callable[..., Server], reference: Callable[[str], list[Completion]], tmp_path: Path
) -> None:
    """Two servers one after the other on one folder."""
    expected, folder = reference("qwen3_moe"), tmp_path / "state"
    settings = SETTINGS.format(folder=folder)
    server = serve("qwen3_moe", LAYOUT, EPLB, settings + PER_RANK, arguments=SERVERS)
    server.wait_ready()
    serve_until(server, 3, expected)

    told = record(server, tmp_path / "window.safetensors", "--state", folder, "--model", "anywhere/qwen3_moe")
    window = RoutingStatistics.read(tmp_path / "window.safetensors")
    assert (told["engine"], told["phase"], told["num_layers"], told["num_experts"]) == ("vllm", "mixed", 4, 32)
    assert window.load.sum(axis=1).tolist() == [told["tokens"] * told["top_k"]] * 4
    assert told["tokens"] > 100
    holds_single_steps(window)

    text = shows_every_metric(server)
    assert len(re.findall(r"^eplb_plugin_rank_load\{", text, re.MULTILINE)) == 4 * 2
    accepted = re.search(r'^eplb_plugin_rebalances_total\{.*result="accepted".*\} (\S+)$', text, re.MULTILINE)
    assert accepted
    assert float(accepted[1]) >= 3
    server.stop()

    begins_where_it_ended(serve("qwen3_moe", LAYOUT, EPLB, settings + STILL), folder, expected)


def test_a_named_placement_that_does_not_fit_ends_the_start(serve: Callable[..., Server], tmp_path: Path) -> None:
    """One line says which file and why."""
    server = serve("qwen3_moe", LAYOUT, EPLB, f"topology: {{nodes: 2}}\ninitial_placement: {tmp_path / 'no'}\n")
    assert server.wait_ended(300) != 0
    assert f"initial_placement: {tmp_path / 'no'}: cannot be read as a placement file" in server.text()
