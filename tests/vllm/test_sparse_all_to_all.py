"""The test bed's sparse all-to-all in real servers: the same output as a single process, while experts move."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from eplb_plugin.bench.engine import Completion, Eplb, Layout
from eplb_plugin.bench.server import Server
from serving.greedy import complete_all, largest_difference

pytestmark = pytest.mark.server


@pytest.mark.parametrize(
    ("ranks", "ranks_per_node"),
    [(2, 1), pytest.param(4, 2, marks=pytest.mark.full), pytest.param(4, 1, marks=pytest.mark.full)],
)
def test_output_is_that_of_a_single_process(
    ranks: int,
    ranks_per_node: int,
    serve: Callable[..., Server],
    reference: Callable[[str], list[Completion]],
) -> None:
    expected = reference("qwen3_moe")
    settings = f"topology: {{nodes: {ranks // ranks_per_node}}}\nforecast_windows: 1\n"
    environment = {"EPLB_CPU_ALL2ALL": "sparse", "EPLB_CPU_RANKS_PER_NODE": str(ranks_per_node)}
    eplb = Eplb(8 * ranks, window_size=4, step_interval=8)
    server = serve("qwen3_moe", Layout(data_parallel=ranks), eplb, settings, **environment)
    server.wait_ready()
    for _ in range(3):
        assert largest_difference(expected, complete_all(server)) < 1e-4
    assert "sparse_all_to_all" in server.text()
    assert len(re.findall(r"\d+ of \d+ slots move", server.text())) >= 3
