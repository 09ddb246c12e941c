"""What the tests of real SGLang servers start, and what they all ask of one."""

from __future__ import annotations

import re

from eplb_plugin.bench.engine import Completion, Eplb, Layout
from eplb_plugin.bench.server import Server
from serving.greedy import complete_all, largest_difference

LAYOUT = Layout(tensor_parallel=2)
REDUNDANT = 16  # many, but not every expert on every rank, so that experts do move
EPLB = Eplb(REDUNDANT, window_size=8, step_interval=8)
SETTINGS = "policy: {policy}\ntopology: {{nodes: 2, ranks_per_node: 1}}\nsample_rows: 1024\n"
CANARY = {"SGLANG_EXPERT_LOCATION_UPDATER_CANARY": "1"}  # SGLang itself checks every slot after every move
# fp32 sums are ordered by the placement; a wrong expert changes log-probabilities by orders of magnitude more
TOLERANCE = 1e-4
REBALANCES = 10


def moves_planned(server: Server) -> list[int]:
    """Slots that each rebalance moves, from the planning rank's log."""
    return [int(count) for count in re.findall(r"(\d+) of \d+ slots move", server.text())]


def moves_finished(server: Server) -> int:
    """Rebalances after which every expert was where the plan wanted it."""
    return len(re.findall(r"migration \d+: \d+ layers in", server.text()))


def serve_until_rebalanced(server: Server, expected: list[Completion], rebalances: int = REBALANCES) -> None:
    """Rounds of correct output over as many rebalances by the plugin, and at least three rounds.

    Experts move in forward passes alone, which only requests cause, several at once: always in the middle of them.
    """
    rounds = 0
    while moves_finished(server) < rebalances or rounds < 3:
        assert rounds < 4 * rebalances, f"only {moves_finished(server)} rebalances in {rounds} rounds"
        assert largest_difference(expected, complete_all(server)) < TOLERANCE
        rounds += 1
    assert "refused" not in server.text()
    assert sum(moves_planned(server)) > 0


def serve_until(server: Server, pattern: str, expected: list[Completion]) -> str:
    """Rounds of correct output until the log, from now on, says `pattern`; returns the line."""
    since = len(server.text())
    for _ in range(30):
        assert largest_difference(expected, complete_all(server)) < TOLERANCE
        found = re.search(rf".*{pattern}.*", server.text()[since:])
        if found:
            return found[0]
    raise AssertionError(f"{pattern!r} did not appear in the log")
