"""Messages between processes over TCP: all at once, of any size, and no hang when a rank is gone."""

from __future__ import annotations

import time

import pytest
import torch.distributed as dist
from eplb_cpu_engines.vllm.links import LinkError, Links

from tests.processes import run_ranks


def links(seconds: float = 20.0) -> Links:
    def share(mine: object) -> list:
        everyone: list = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, mine)
        return everyone

    return Links(dist.get_rank(), "127.0.0.1", share, seconds)


def message(source: int, target: int, size: int) -> bytes:
    return bytes([source, target]) * (size // 2)


def _everyone_to_everyone(sizes: list[int]) -> bool:
    mine, rank, ranks = links(), dist.get_rank(), range(dist.get_world_size())
    others = [peer for peer in ranks if peer != rank]
    for size in sizes:
        found = mine.exchange({peer: message(rank, peer, size) for peer in others}, others)
        assert found == {peer: message(peer, rank, size) for peer in others}
    mine.close()
    return True


def test_every_message_arrives_whole_also_those_larger_than_any_socket_buffer():
    assert all(run_ranks(3, _everyone_to_everyone, [0, 2, 1000, 30_000_000, 0, 2]))


def _ahead_of_the_other() -> bytes:
    mine = links()
    if dist.get_rank() == 0:  # two messages, before the other has asked for the first
        mine.exchange({1: b"first"}, [])
        mine.exchange({1: b"second"}, [])
        return b"".join(mine.exchange({}, [1]).values())
    time.sleep(0.2)
    parts = [mine.exchange({}, [0])[0] for _ in range(2)]
    mine.exchange({0: b"-".join(parts)}, [])
    return b"-".join(parts)


def test_messages_are_not_mixed_up_when_one_side_is_ahead():
    assert run_ranks(2, _ahead_of_the_other) == [b"first-second"] * 2


def _without_the_other(closes: bool) -> str:
    mine = links(seconds=1.0)
    if dist.get_rank() == 1:
        if closes:
            mine.close()
        dist.barrier()
        return "rank 0 is not sent what it waits for"
    with pytest.raises(LinkError) as caught:
        mine.exchange({}, [1])
    dist.barrier()
    return str(caught.value)


@pytest.mark.parametrize(
    ("closes", "words"), [(True, "rank 1 closed its connection"), (False, "waited 1 s for ranks [1]")]
)
def test_a_closed_or_silent_rank_is_an_error_and_no_hang(closes: bool, words: str):
    assert words in run_ranks(2, _without_the_other, closes)[0]
