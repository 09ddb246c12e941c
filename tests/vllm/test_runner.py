"""What GPUs run and a CPU's defaults leave out, in one server: model runner V2 with several kinds of steps."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from kept_state import metrics_of
from serving.engine import Completion, Eplb, Layout
from serving.greedy import PROMPTS, complete, complete_all, largest_difference
from serving.server import Server

pytestmark = pytest.mark.server

SETTINGS = "topology: {nodes: 2}\nsample_rows: 1024\nforecast_windows: 1\n"
REBALANCES = 15
# a prompt of 60 tokens is two chunks at least; blocks so small that the same prompt finds some of its own in the cache
STEPS = ["--async-scheduling", "--max-num-batched-tokens", "40", "--block-size", "32", "--enable-prefix-caching"]


def test_every_kind_of_step_leaves_the_output_unchanged(
    serve: Callable[..., Server], reference: Callable[[str], list[Completion]]
) -> None:
    """Chunked prefills, cached prefixes, dummy steps of a rank without requests beside one that has them, all under
    asynchronous scheduling."""
    expected = reference("qwen3_moe")
    eplb = Eplb(16, window_size=4, step_interval=8)
    server = serve("qwen3_moe", Layout(data_parallel=2), eplb, SETTINGS, arguments=STEPS)
    server.wait_ready()
    text = server.text()
    assert "Using V2 Model Runner" in text
    assert "slots move" not in text, "experts moved before the first request"
    rounds = 0
    while len(re.findall("slots move", server.text())) < REBALANCES or rounds < 2:
        assert rounds < 20
        assert largest_difference(expected, complete_all(server)) < 1e-4
        alone = complete(server, PROMPTS[rounds])  # the other rank takes dummy steps
        assert largest_difference([expected[rounds]], [alone]) < 1e-4
        rounds += 1
    assert "refused" not in server.text()
    hits = re.findall(r"^vllm:prefix_cache_hits_total\{.*\} (\S+)$", metrics_of(server), re.MULTILINE)
    assert sum(map(float, hits)) > 0
