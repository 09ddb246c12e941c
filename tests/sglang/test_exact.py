"""`exact` in a real server: large steps are even, and no step changes the output."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from eplb_plugin.bench.engine import Completion, Eplb
from eplb_plugin.bench.server import Server
from exact_servers import SETTINGS, check_steps, serve_until_rebalanced
from server_plugins import python_path
from sglang_servers import CANARY, LAYOUT, REDUNDANT

pytestmark = pytest.mark.server


def test_large_steps_are_even_and_the_output_is_unchanged(
    serve: Callable[..., Server], reference: Callable[[str], list[Completion]], tmp_path: Path
) -> None:
    """Greedy output equals the Hugging Face model's, over rebalances and in steps of both kinds in turn, without an
    exchange: both ranks route every token, decide alike and choose alike; prompts are evener than decode steps."""
    folder, eplb = tmp_path / "exact", Eplb(REDUNDANT, window_size=4, step_interval=8)
    watched = {"EPLB_FAULTS": str(tmp_path / "faults"), "EPLB_EXACT": str(folder), "PYTHONPATH": python_path("sglang")}
    server = serve("qwen3_moe", LAYOUT, eplb, SETTINGS, **watched, **CANARY)
    server.wait_ready()
    serve_until_rebalanced(server, reference("qwen3_moe"), {})
    check_steps(folder, LAYOUT)
