"""A real server whose recorded traffic changes: the next rebalance does not wait for the interval."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from eplb_plugin.bench.engine import Eplb
from eplb_plugin.bench.server import Server
from eplb_plugin.engines.settings import REPLAY
from sglang_servers import CANARY, LAYOUT
from shifting_traffic import ROUND, SETTINGS, WINDOW, answers_a_shift, replayed

pytestmark = [pytest.mark.server, pytest.mark.full]

INTERVAL = 500
SHIFT = 608 + ROUND // 2


def test_a_shift_is_answered_before_the_interval_ends(serve: Callable[..., Server], tmp_path: Path) -> None:
    """By one rebalance within the windows that tell it; with the traffic that was planned for there is none. Output of
    the same rows is the same before and after."""
    server = serve(
        "qwen3_moe", LAYOUT, Eplb(2, WINDOW, INTERVAL), SETTINGS,
        arguments=["--enable-metrics"], **CANARY, **{REPLAY: replayed(tmp_path, SHIFT)},
    )  # fmt: skip
    server.wait_ready()
    course = answers_a_shift(server, SHIFT)
    mixed = SHIFT // ROUND
    assert course.changes == [mixed, mixed + 1]
