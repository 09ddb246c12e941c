"""What GPUs run and a CPU's defaults leave out, in one server: model runner V2 with several kinds of steps."""

from __future__ import annotations

import re
import urllib.error
from collections.abc import Callable

import pytest

from eplb_plugin.bench.engine import Completion, Eplb, Layout
from eplb_plugin.bench.server import Server
from kept_state import metrics_of
from serving.greedy import PROMPTS, complete, complete_all, largest_difference

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


def test_warm_up_reaches_no_window_and_sleep_of_level_2_is_refused(
    serve: Callable[..., Server],
) -> None:
    """After a pass of 40 tokens a rank that measures memory, and a warm-up of prompts, single tokens and a grammar, the
    first window holds the first request's tokens alone, and nothing has moved before.
    `/sleep?level=2` is refused, and the server serves on."""
    prompt = min(PROMPTS, key=len)
    arguments = ["--max-num-batched-tokens", "40", "--gpu-memory-utilization", "0.1"]
    server = serve(
        "qwen3_moe", Layout(data_parallel=2), Eplb(16, window_size=8, step_interval=8), SETTINGS, arguments=arguments,
        without=["VLLM_CPU_KVCACHE_SPACE"], VLLM_SERVER_DEV_MODE="1", EPLB_CPU_WARM_UP="1",
    )  # fmt: skip
    server.wait_ready()
    text = server.text()
    assert "Using V2 Model Runner" in text
    assert "Warming up done." in text
    assert text.count("The steps of a warm-up were taken") == 2
    assert "slots move" not in text
    answer = complete(server, prompt)
    first = re.search(r"rebalance 1 of .* from (\d+) tokens", server.text())
    assert first
    assert len(prompt) <= int(first[1]) <= len(prompt) + 7
    with pytest.raises(urllib.error.HTTPError) as refused:
        server.post("/sleep?level=2", {})
    with refused.value:
        assert "sleep level: found 2, expected level 1: " in refused.value.read().decode()
    assert largest_difference([answer], [complete(server, prompt)]) < 1e-4
