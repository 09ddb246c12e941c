"""What a small report is made of, and a way to read its charts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eplb_plugin import Placement, RoutingStatistics, Topology, plan
from eplb_plugin.observe.bench_results import Run, read_runs
from eplb_plugin.observe.report.given import Given, Placed, View, placed
from eplb_plugin.workloads.routing import ClusteredRouter
from generators import vllm_result

ROUTER = ClusteredRouter(3, 32, 4, num_topics=4, purity=0.8, strength=3.0, skew=0.8)


@pytest.fixture(scope="session")
def windows() -> dict[str, RoutingStatistics]:
    return {f"window {seed}": RoutingStatistics.from_topk(ROUTER.window(500, seed), 32, [3, 5, 7]) for seed in (0, 1)}


@pytest.fixture(scope="session")
def placements(windows: dict[str, RoutingStatistics]) -> dict[str, Placement]:
    made = plan(windows["window 0"], Topology(2, 2, 9), policy="affinity", dispatch="hash")
    return {"planned <i>": made.placement}


@pytest.fixture(scope="session")
def arms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Run]]:
    folder = tmp_path_factory.mktemp("runs")
    for qps in (4.0, 5.0):
        lines = [json.dumps(vllm_result(qps + 0.05 * number)) for number in range(5)]
        (folder / f"{qps}.jsonl").write_text("\n".join(lines))
    return {"vanilla": read_runs(folder / "4.0.jsonl"), "<b>plugin</b>": read_runs(folder / "5.0.jsonl")}


@pytest.fixture(scope="session")
def given(windows: dict[str, RoutingStatistics], placements: dict[str, Placement], arms: dict[str, list[Run]]) -> Given:
    return Given(windows, placements, View(nodes=2, ranks_per_node=2), arms=arms)


@pytest.fixture(scope="session")
def shown(given: Given) -> Placed:
    found = placed(given)
    assert found is not None
    return found


@pytest.fixture(scope="session")
def demo_file() -> Path:
    return Path(__file__).parents[1] / "data" / "demo.json"
