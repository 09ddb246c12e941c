"""What the tests of real SGLang servers start, and what they all ask of one."""

from __future__ import annotations

import re

from serving.engine import Completion, Eplb, Layout
from serving.greedy import complete_all, largest_difference
from serving.server import Server

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


def serve_until_rebalanced(server: Server, expected: list[Completion]) -> None:
    """Rounds of correct output over REBALANCES rebalances by the plugin, and at least three rounds."""
    rounds = 0
    while len(moves_planned(server)) < REBALANCES or rounds < 3:
        assert rounds < 40, f"only {len(moves_planned(server))} rebalances in {rounds} rounds"
        assert largest_difference(expected, complete_all(server)) < TOLERANCE
        rounds += 1
    assert "refused" not in server.text()
    assert sum(moves_planned(server)) > 0
