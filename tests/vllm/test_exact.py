"""`exact` in real servers: large steps are even, no step changes the output, and a rank that stops ends the server."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from eplb_plugin.bench.engine import Completion, Eplb, Layout
from eplb_plugin.bench.server import Server
from eplb_plugin.bench.vllm import RUNNER_V1 as V1
from serving.greedy import PROMPTS, TOKENS, largest_difference

pytestmark = pytest.mark.server

# of three clients: no decode step has so many tokens, and every step in which a prompt begins has more
SETTINGS = """
topology: {nodes: 2}
sample_rows: 1024
forecast_windows: 1
dispatch: cover
exact: {min_tokens: 8}
migration: {vote_seconds: 20}
"""
TOLERANCE, REBALANCES = 1e-4, 6


def differences(server: Server, expected: list[Completion], headers: dict[str, str]) -> float:
    """Of PROMPTS, answered to several lengths, so that prompts begin between others' tokens."""

    def complete(number: int) -> float:
        length = TOKENS - 5 * (number % 4)
        path, body = server.engine.completion_request(server.model, PROMPTS[number], length)
        given = {"Content-Type": "application/json", **headers}
        request = urllib.request.Request(server.url + path, json.dumps(body).encode(), given)
        with urllib.request.urlopen(request, timeout=300) as answer:
            found, known = server.engine.completion(json.load(answer)), expected[number]
        return largest_difference([Completion(known.tokens[:length], known.logprobs[:length])], [found])

    with ThreadPoolExecutor(3) as pool:
        return max(pool.map(complete, range(len(PROMPTS))))


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
    headers, rounds = ({"X-data-parallel-rank": "0"} if layout.data_parallel > 1 else {}), 0  # the other rank is idle
    while server.text().count("slots move, planned in") < REBALANCES or rounds < 2:
        assert rounds < 30, server.tail()
        assert differences(server, expected, headers) < TOLERANCE
        rounds += 1
    assert "refused" not in server.text()
    even, served = calls(folder, layout)
    assert (even[1:] != even[:-1]).sum() > 20, "the threshold is crossed every few steps"
    large = served[even & (served.sum(axis=1) > 40)]
    small = served[~even]
    assert balance(large) > 0.97
    assert balance(large) > balance(small) + 0.02
    if strike:
        control.write_text(strike)
        with pytest.raises((urllib.error.HTTPError, urllib.error.URLError, ConnectionError)):
            differences(server, expected, headers)
        server.wait_ended(120)
        assert "exchange of counts: a rank ended or does not answer, rank 0 ends: " in server.text()


def calls(folder: Path, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """Of every call of the hook, in order: whether it evened its step out, and the selections that each rank served."""
    ranks = []
    for rank in range(layout.ranks):
        *whole, _unfinished = (folder / f"rank{rank}.jsonl").read_text().split("\n")
        ranks.append([json.loads(line) for line in whole])
    count = min(map(len, ranks))
    kinds, served = ([[line[key] for line in lines[:count]] for lines in ranks] for key in ("exact", "served"))
    assert all(one == kinds[0] for one in kinds), "ranks decided differently"
    if layout.data_parallel == 1:  # all route the same tokens
        assert served[0] == served[1]
        return np.array(kinds[0]), np.array(served[0])
    return np.array(kinds[0]), np.sum(served, axis=0)


def balance(served: np.ndarray) -> float:
    return float(served.mean(axis=1).sum() / served.max(axis=1).sum())
