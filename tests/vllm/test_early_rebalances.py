"""A real server whose recorded traffic changes: the next rebalance does not wait for the interval."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from eplb_plugin.bench.engine import Eplb, Layout
from eplb_plugin.bench.server import Server
from eplb_plugin.bench.vllm import RUNNER_V1
from eplb_plugin.engines.settings import SIMULATION
from shifting_traffic import ROUND, SETTINGS, WINDOW, answers_a_shift, replayed

pytestmark = pytest.mark.server

INTERVAL = 1024  # of which the first is a quarter as long
SHIFT = 320 + ROUND // 2
LAYOUT = Layout(tensor_parallel=2)  # whose steps are those of its requests alone


@pytest.mark.parametrize(
    ("use_async", "environment"),
    [
        pytest.param(True, RUNNER_V1, id="tp2-async-v1"),
        pytest.param(False, {}, id="tp2-sync", marks=pytest.mark.full),
    ],
)
def test_a_shift_is_answered_before_the_interval_ends(
    use_async: bool, environment: dict[str, str], serve: Callable[..., Server], tmp_path: Path
) -> None:
    """By one rebalance within the windows that tell it, long before its time; with the traffic that was planned for
    there is none. Output of the same rows is the same before and after."""
    (tmp_path / "metrics").mkdir()
    environment = environment | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "metrics")}
    server = serve(
        "qwen3_moe", LAYOUT, Eplb(2, WINDOW, INTERVAL, use_async), SETTINGS,
        arguments=["--no-enable-prefix-caching", "--no-async-scheduling"],
        **environment, **{SIMULATION: f"eplb_plugin:{replayed(tmp_path, SHIFT)}"},
    )  # fmt: skip
    server.wait_ready()
    course = answers_a_shift(server, SHIFT)
    mixed = SHIFT // ROUND
    assert course.changes == [mixed, mixed + 1]
