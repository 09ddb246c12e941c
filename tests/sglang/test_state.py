"""A server that keeps its state: recorded while it serves, in both ways, with its metrics; another begins there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from eplb_plugin.bench.engine import Completion
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
from sglang_servers import CANARY, EPLB, LAYOUT, SETTINGS

pytestmark = pytest.mark.server


def test_recorded_shown_and_taken_up_again(
    serve: Callable[..., Server], reference: Callable[[str], list[Completion]], tmp_path: Path
) -> None:
    """Two servers one after the other on one folder; the second loads its weights by the placement of the first."""
    expected, folder, dumps = reference("qwen3_moe"), tmp_path / "state", tmp_path / "dumps"
    settings = SETTINGS.format(policy="affinity") + f"state_directory: {folder}\n"
    where = {"SGLANG_EXPERT_DISTRIBUTION_RECORDER_DIR": str(dumps)}
    server = serve("qwen3_moe", LAYOUT, EPLB, settings + PER_RANK, arguments=["--enable-metrics"], **where, **CANARY)
    server.wait_ready()
    serve_until(server, 3, expected)

    told = record(server, tmp_path / "window.safetensors", "--state", folder)
    window = RoutingStatistics.read(tmp_path / "window.safetensors")
    assert (told["engine"], told["phase"], told["num_layers"], told["num_experts"]) == ("sglang", "mixed", 4, 32)
    assert window.load.sum(axis=1).tolist() == [told["tokens"] * told["top_k"]] * 4
    holds_single_steps(window)

    told = record(server, tmp_path / "loads.safetensors", "--url", server.url, "--dumps", dumps)
    loads = RoutingStatistics.read(tmp_path / "loads.safetensors")
    assert told["model"] == str(server.model)
    assert loads.sample is None
    assert loads.load.shape == window.load.shape
    share = [one.load / one.load.sum(axis=1, keepdims=True) for one in (window, loads)]
    assert np.abs(share[0] - share[1]).sum(axis=1).max() < 0.6, "not the routing of this model"
    shows_every_metric(server)
    server.stop()

    begins_where_it_ended(serve("qwen3_moe", LAYOUT, EPLB, settings + STILL, **CANARY), folder, expected)


def test_a_server_without_eplb_is_recorded_token_by_token(serve: Callable[..., Server], tmp_path: Path) -> None:
    """The plugin is not on; every rank writes all tokens, which count once."""
    arguments = ["--expert-distribution-recorder-mode", "per_token"]
    where = {"SGLANG_EXPERT_DISTRIBUTION_RECORDER_DIR": str(tmp_path / "dumps")}
    server = serve("qwen3_moe", LAYOUT, arguments=arguments, **where)
    server.wait_ready()
    told = record(server, tmp_path / "window.safetensors", "--url", server.url, "--dumps", tmp_path / "dumps")
    window = RoutingStatistics.read(tmp_path / "window.safetensors")
    assert told["top_k"] == 4
    assert window.sample is not None
    assert window.load.sum(axis=1).tolist() == [told["tokens"] * 4] * 4
