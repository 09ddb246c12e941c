"""Layers on several threads: the same plans, the same errors, and no thread where a machine has few cores."""

from __future__ import annotations

import threading

import pytest

from eplb_plugin import PlanOptions, RoutingStatistics, Topology, plan
from eplb_plugin.planning.side_by_side import num_threads, solve_each
from eplb_plugin.workloads.routing import ClusteredRouter
from generators import RULES

TOPOLOGY = Topology(num_nodes=2, ranks_per_node=2, slots_per_rank=5)


def cores(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(count)))


@pytest.mark.parametrize(("count", "expected"), [(1, 1), (2, 1), (7, 1), (8, 2), (16, 4), (384, 8)])
def test_the_engine_keeps_most_cores(monkeypatch: pytest.MonkeyPatch, count: int, expected: int) -> None:
    cores(monkeypatch, count)
    assert num_threads() == expected


def test_items_stay_in_their_order_and_run_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of them meet: with one thread this would wait for ever."""
    cores(monkeypatch, 8)
    both = threading.Barrier(2)
    assert solve_each(lambda item: (both.wait(timeout=30), item)[1], [3, 1]) == [3, 1]


def test_an_error_is_raised_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    cores(monkeypatch, 8)
    with pytest.raises(ZeroDivisionError):
        solve_each(lambda item: 1 // item, [1, 0, 2])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("policy", ["balanced", "affinity"])
@pytest.mark.parametrize("bound", [{}, {"max_moved_slots": 4}, {"max_moved_slots_total": 9}])
def test_threads_change_no_plan(monkeypatch: pytest.MonkeyPatch, policy: str, rule: str, bound: dict[str, int]) -> None:
    """Cold and warm, bit for bit, with traffic of several kinds."""
    router = ClusteredRouter(num_layers=5, num_experts=16, top_k=3, num_topics=4)
    first, second, third = (
        RoutingStatistics.from_topk(router.drifted(drift).window(400, seed), 16)
        for seed, drift in enumerate((0.0, 0.4, 0.9))
    )
    digests = []
    for count in (1, 32):
        cores(monkeypatch, count)
        cold = plan(first, TOPOLOGY, policy=policy, dispatch=rule)
        warm = plan(
            second.merge(third), TOPOLOGY, policy=policy, dispatch=rule, previous=cold, options=PlanOptions(**bound)
        )
        digests.append((cold.digest, warm.digest))
    assert num_threads() == 8
    assert digests[0] == digests[1]
