"""Swaps that lower the busiest rank: within the budget, and at a price where they cross nodes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from eplb_plugin.planning.moves.balance import RELIEF_PRICE, level_ranks
from strategies import QUICK
from swap_cases import TOKENS, check, opened, visited


@QUICK
@given(st.integers(0, 10**6), st.integers(0, 12))
def test_ranks_become_more_even_for_their_price(seed: int, budget: int) -> None:
    """The busiest rank is never heavier afterwards, and what it lost is worth the visits that it cost."""
    state, old = opened(seed, budget=budget), opened(seed, budget=budget)
    swaps = level_ranks(state, 0.002)
    check(state, old)
    peak, before, mean = state.rank_load.max(), old.rank_load.max(), old.rank_load.mean()
    assert peak <= before + 1e-12
    assert (swaps > 0) == (state.phy2log != old.phy2log).any()
    if swaps == 1:
        paid = float(visited(state).sum() - visited(old).sum())
        assert RELIEF_PRICE * TOKENS * (before - peak) / mean > paid - 1e-9


def test_what_is_even_enough_is_left_alone() -> None:
    state = opened(3)
    assert level_ranks(state, 10.0) == 0


def test_it_levels_where_nothing_is_scarce() -> None:
    """Without a bound on moves, random layers come close to even."""
    overload = []
    for seed in range(20):
        state = opened(seed)
        level_ranks(state, 0.002)
        overload.append(state.rank_load.max() / state.rank_load.mean() - 1.0)
    assert sorted(overload)[len(overload) // 2] < 0.02
