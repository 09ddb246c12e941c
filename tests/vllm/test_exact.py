"""`exact` in real servers: large steps are even, no step changes the output, and a rank that stops ends the server."""

from __future__ import annotations

import urllib.error
from collections.abc import Callable
from pathlib import Path

import pytest

from eplb_plugin.bench.engine import Completion, Eplb, Layout
from eplb_plugin.bench.server import Server
from eplb_plugin.bench.vllm import RUNNER_V1 as V1
from exact_servers import SETTINGS, check_steps, differences, serve_until_rebalanced

pytestmark = pytest.mark.server


@pytest.mark.parametrize(
    ("layout", "use_async", "environment", "strike"),
    [
        pytest.param(Layout(data_parallel=2), True, V1, "SIGKILL", id="dp2-one-rank-idle-async-v1"),
        pytest.param(
            Layout(data_parallel=2), False, {}, "SIGSTOP", id="dp2-one-rank-idle-sync", marks=pytest.mark.full
        ),
        pytest.param(Layout(tensor_parallel=2), False, {}, "", id="tp2-sync", marks=pytest.mark.full),
    ],
)
def test_large_steps_are_even_and_the_output_is_unchanged(
    layout: Layout,
    use_async: bool,
    environment: dict[str, str],
    strike: str,
    serve: Callable[..., Server],
    reference: Callable[[str], list[Completion]],
    tmp_path: Path,
    fault_path: str,
) -> None:
    """Greedy output equals a single process's without the plugin, over rebalances and in steps of both kinds in turn;
    all ranks decide alike, large steps are evener than small ones; a rank struck in an exchange ends the server."""
    expected, control, folder = reference("qwen3_moe"), tmp_path / "faults", tmp_path / "exact"
    eplb = Eplb(16, window_size=4, step_interval=8, use_async=use_async)
    watched = {"EPLB_FAULTS": str(control), "EPLB_EXACT": str(folder), "PYTHONPATH": fault_path} | environment
    watched["VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS"] = "60"  # a stopped rank's engine waits for it until then
    arguments = [] if use_async else ["--no-async-scheduling"]
    server = serve("qwen3_moe", layout, eplb, SETTINGS, arguments=arguments, **watched)
    server.wait_ready()
    headers = {"X-data-parallel-rank": "0"} if layout.data_parallel > 1 else {}  # the other rank is idle
    serve_until_rebalanced(server, expected, headers)
    check_steps(folder, layout)
    if strike:
        control.write_text(strike)
        with pytest.raises((urllib.error.HTTPError, urllib.error.URLError, ConnectionError)):
            differences(server, expected, headers)
        server.wait_ended(120)
        assert "exchange of counts: a rank ended or does not answer, rank 0 ends: " in server.text()
