"""Swaps that save crossings: really, beyond chance, and without making a rank above the bound heavier."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from eplb_plugin.planning.moves.locality import Demands, save_visits
from strategies import QUICK
from swap_cases import TOKENS, check, opened, visited


@QUICK
@given(st.integers(0, 10**6), st.integers(0, 12), st.sampled_from([0.0, 1.2, 10.0]), st.sampled_from([0.0, 0.02, 0.1]))
def test_visits_are_saved_within_the_bounds(seed: int, budget: int, bound: float, share: float) -> None:
    """bound: of mean rank loads. Every swap saves at least its share of the tokens, counted token by token."""
    state, old = opened(seed, budget=budget), opened(seed, budget=budget)
    mean = float(old.rank_load.mean())
    swaps = save_visits(state, Demands(bound * mean, share, 0.0))
    check(state, old)
    saved = int(visited(old).sum() - visited(state).sum())
    assert saved >= swaps * max(share * TOKENS, 1.0)
    assert state.rank_load.max() <= max(old.rank_load.max(), bound * mean) + 1e-9


def test_something_is_saved_where_there_is_something_to_save() -> None:
    """With no bound, most random layers can be improved; with sigmas out of reach, none."""
    swaps = [save_visits(opened(seed), Demands(np.inf, 0.0, 0.0)) for seed in range(20)]
    assert np.count_nonzero(swaps) > 10
    assert not any(save_visits(opened(seed), Demands(np.inf, 0.0, 100.0)) for seed in range(20))
