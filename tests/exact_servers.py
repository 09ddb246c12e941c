"""What servers under `exact` are given and asked, and what `faults/eplb_exact.py` saw in them."""

from __future__ import annotations

import json
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from eplb_plugin.bench.engine import Completion, Layout
from eplb_plugin.bench.server import Server
from serving.greedy import PROMPTS, TOKENS, largest_difference

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


def serve_until_rebalanced(server: Server, expected: list[Completion], headers: dict[str, str]) -> None:
    """At least REBALANCES of them and two rounds, all with the output that is expected."""
    rounds = 0
    while server.text().count("slots move, planned in") < REBALANCES or rounds < 2:
        assert rounds < 30, server.tail()
        assert differences(server, expected, headers) < TOLERANCE
        rounds += 1
    assert "refused" not in server.text()


def check_steps(folder: Path, layout: Layout) -> None:
    """Large steps are even, and evener than small ones, to which they change often."""
    even, served = calls(folder, layout)
    assert (even[1:] != even[:-1]).sum() > 20, "the threshold is crossed every few steps"
    large = served[even & (served.sum(axis=1) > 40)]
    small = served[~even]
    assert balance(large) > 0.97
    assert balance(large) > balance(small) + 0.02


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
