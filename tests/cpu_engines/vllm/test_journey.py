"""Tokens reach exactly the ranks of their experts, cross to a node once, and come back as the right sums."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from eplb_cpu_engines.vllm.journey import Journey, Seat
from eplb_cpu_engines.vllm.links import Links

from tests.cpu_engines.vllm.test_links import links
from tests.processes import run_ranks

HIDDEN, K, SLOTS = 6, 3, 4


class Counted:
    """Links that note how many rows go where."""

    def __init__(self, inner: Links) -> None:
        self.inner, self.bytes = inner, torch.zeros(dist.get_world_size(), dtype=torch.long)

    def exchange(self, outgoing, incoming):
        for rank, message in outgoing.items():
            self.bytes[rank] += len(message)
        return self.inner.exchange(outgoing, incoming)


def tokens(rank: int, count: int, experts: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A rank's hidden states, router weights and physical ids, some of which are -1."""
    generator = torch.Generator().manual_seed(rank)
    ids = torch.rand(count, experts, generator=generator).topk(K).indices.int()
    ids[torch.rand(count, K, generator=generator) < 0.1] = -1
    return torch.randn(count, HIDDEN, generator=generator), torch.rand(count, K, generator=generator), ids


def compute(hidden: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor, experts: range) -> torch.Tensor:
    """What the rank with these experts adds: expert e gives (e + 1) times its input."""
    here = (ids >= experts.start) & (ids < experts.stop)
    return hidden * (weights * here * (ids + 1)).sum(1, keepdim=True)


def _one_layer(counts: list[int], ranks_per_node: int) -> tuple[list[int], list[int]]:
    """Bytes that were sent to each rank, and that should have been, of all ranks that this one talks to."""
    rank, world = dist.get_rank(), dist.get_world_size()
    seat, experts = Seat(rank, world, ranks_per_node), world * SLOTS
    counted = Counted(links())
    for step in range(2):  # with another batch, nothing of the first may be left
        hidden, weights, ids = tokens(rank + world * step, counts[(rank + step) % world], experts)
        counted.bytes.zero_()
        journey = Journey(seat, counted, experts)
        arrived = journey.dispatch(hidden, weights, ids)
        output = torch.full_like(hidden, torch.nan)
        own = range(rank * SLOTS, (rank + 1) * SLOTS)
        assert ((arrived[2] >= own.start) & (arrived[2] < own.stop)).any(1).all(), "a token without an expert here"
        journey.combine(compute(*arrived, own), output)
        torch.testing.assert_close(output, compute(hidden, weights, ids, range(experts)))
    # across nodes: one row out for each node that a token needs, and one output back for each row that came
    node = ids.div(SLOTS * ranks_per_node, rounding_mode="floor")
    row = 4 * (HIDDEN + 2 * K)
    return (
        [int(counted.bytes[peer]) for peer in seat.across if peer != rank],
        [int((node == at).any(1).sum()) * row for at, peer in enumerate(seat.across) if peer != rank],
    )


@pytest.mark.parametrize(("world", "ranks_per_node"), [(2, 1), (4, 1), (4, 2), (4, 4), (3, 1)])
def test_sums_are_those_of_all_experts(world: int, ranks_per_node: int):
    counts = [5, 0, 17, 1][:world]
    sent = torch.tensor([rank[0] for rank in run_ranks(world, _one_layer, counts, ranks_per_node)])
    assert sent.numel() == world * (world // ranks_per_node - 1)


def _crossings(ranks_per_node: int) -> tuple[list[int], list[int]]:
    return _one_layer([9] * dist.get_world_size(), ranks_per_node)


def test_a_token_crosses_to_a_node_once():
    found = run_ranks(4, _crossings, 2)
    for rank, (sent, out) in enumerate(found):
        peer = (rank + 2) % 4
        back = found[peer][1][0] // (4 * (HIDDEN + 2 * K)) * 4 * HIDDEN
        assert sent == [out[0] + back]


def test_ranks_that_do_not_divide_into_nodes_are_refused():
    with pytest.raises(ValueError, match="found 3 ranks per node for 4 ranks, expected a divisor"):
        Seat(0, 4, 3)
