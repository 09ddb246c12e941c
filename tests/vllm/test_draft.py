"""A draft model (one MTP layer) is a second entry with its own maps, planned by load only."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest

from eplb_plugin.bench.engine import Completion, Eplb, Layout
from eplb_plugin.bench.server import Server
from serving.greedy import complete_all, largest_difference

pytestmark = pytest.mark.server

# by hash: with weighted tables so many replicas are evened out without a move
SETTINGS = {"topology": {"nodes": 2}, "sample_rows": 1024, "dispatch": "hash", "forecast_windows": 1}
REBALANCES = 15
SPECULATION = ["--speculative-config", '{"method": "mtp", "num_speculative_tokens": 1}']


@pytest.mark.parametrize(
    "use_async", [pytest.param(True, id="async"), pytest.param(False, id="sync", marks=pytest.mark.full)]
)
def test_target_and_draft_are_rebalanced_and_the_output_is_unchanged(
    use_async: bool, serve: Callable[..., Server], reference: Callable[[str], list[Completion]]
) -> None:
    """Speculative greedy decoding answers as plain decoding does, over many rebalances of both models."""
    expected = reference("glm4_moe")
    eplb = Eplb(16, window_size=4, step_interval=8, use_async=use_async)
    layout = Layout(data_parallel=2)
    settings = ["--additional-config", json.dumps({"eplb_plugin": SETTINGS})]
    server = serve("glm4_moe", layout, eplb, arguments=[*settings, *SPECULATION])
    server.wait_ready()
    for _ in range(40):
        assert largest_difference(expected, complete_all(server)) < 1e-4
        planned = re.findall(r"rebalance \d+ of \S+( \(draft\))?: .* (\d+) of \d+ slots move", server.text())
        draft = [int(moved) for name, moved in planned if name]
        target = [int(moved) for name, moved in planned if not name]
        if min(len(draft), len(target)) >= REBALANCES:
            break
    assert min(len(draft), len(target)) >= REBALANCES
    assert sum(draft) > 0
    assert sum(target) > 0
    assert "Using V2 Model Runner" in server.text()
    assert "(draft): 1 MoE layers" in server.text()
    assert "policy balanced" in server.text()
