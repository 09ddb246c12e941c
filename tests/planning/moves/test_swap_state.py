"""Swaps of two slots: all that is known of a layer stays true, whatever is swapped."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from eplb_plugin.planning.moves.swap_state import SwapState, cost_of, is_affordable, makes_twins, reopen_swaps, swap
from strategies import QUICK
from swap_cases import NODE_OF_SLOT, RANKS, SLOTS, check, opened


def allowed(state: SwapState, first: int, second: int) -> bool:
    """Within a node anything may change places, across nodes what has one replica."""
    movable = state.movable[state.phy2log[[first, second]]].all()
    near = NODE_OF_SLOT[first] == NODE_OF_SLOT[second]
    return first // SLOTS != second // SLOTS and (near or movable) and not makes_twins(state, first, second)


@QUICK
@given(
    st.integers(0, 10**6), st.integers(1, 3), st.lists(st.tuples(*[st.integers(0, RANKS * SLOTS - 1)] * 2), max_size=30)
)
def test_everything_is_kept_up_to_date(seed: int, phases: int, pairs: list[tuple[int, int]]) -> None:
    """After any swaps: holders, loads, visits and moved slots are those of the slots as they lie then."""
    state, old = opened(seed, phases), opened(seed, phases)
    for first, second in pairs:
        if allowed(state, first, second):
            before, cost = int(state.moved[0]), cost_of(state, first, second)
            swap(state, first, second)
            assert state.moved[0] == before + cost
    check(state, old)
    again = reopen_swaps(state)
    np.testing.assert_allclose(again.rank_load, state.rank_load, rtol=1e-9)


def test_a_swap_back_is_free() -> None:
    """Slots that come home are no moves; the first swap costs two, and more than the budget is refused."""
    state = opened(1, budget=1)
    first, second = next((a, b) for a in range(SLOTS) for b in range(SLOTS, 2 * SLOTS) if allowed(state, a, b))
    assert (cost_of(state, first, second), is_affordable(state, first, second)) == (2, False)
    swap(state, first, second)
    assert (cost_of(state, first, second), is_affordable(state, first, second)) == (-2, True)
    swap(state, first, second)
    assert state.moved[0] == 0
    check(state, opened(1, budget=1))
