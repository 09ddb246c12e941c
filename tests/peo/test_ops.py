"""The op list: what an op is called, and how often a list turns to the other buffer."""

from __future__ import annotations

import pytest

from eplb_plugin.peo.ops import Op, Schedule
from eplb_plugin.peo.schedule import make_schedule


def test_an_op_says_what_it_is_and_where():
    """Its round where there are several."""
    op = Op("gemm up", "gemm", 60, 2, 4, (4, 6))
    assert str(op) == "gemm up 2 on gemm"
    assert not op.is_comm
    whole = Op("combine recv", "main", 78, 0, 1, (0, 8))
    assert str(whole) == "combine recv on main"
    assert whole.is_comm


@pytest.mark.parametrize(("api", "rounds", "calls"), [("patched", 4, 2), ("stock", 4, 5), ("stock", 1, 2)])
def test_a_stock_buffer_turns_at_every_launch(api: str, rounds: int, calls: int):
    """A patched one once for the dispatch and once for the combine."""
    made = make_schedule("overlap-2", num_rounds=rounds, num_local_experts=8, num_device_sms=78, api=api)
    assert made.num_calls == calls


def test_ops_of_a_kind_are_in_order_of_launch():
    """And all kinds together are the list."""
    made = make_schedule("overlap-1", num_rounds=2, num_local_experts=8, num_device_sms=78)
    assert isinstance(made, Schedule)
    assert [op.round for op in made.of_kind("dispatch send")] == [0, 1]
    kinds = {op.kind for op in made}
    assert sum(len(made.of_kind(kind)) for kind in kinds) == len(made) == len(list(made))
