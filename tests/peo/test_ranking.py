"""Which schedule the model prefers: sorted by what it says, beside what others claim."""

from __future__ import annotations

import numpy as np
import pytest

from eplb_plugin import PluginError
from eplb_plugin.peo.cost import Traffic, even_shares
from eplb_plugin.peo.presets import HARDWARE, MODELS
from eplb_plugin.peo.ranking import distances, rank_schedules, split_counts, stock_candidate, unsplit_us
from eplb_plugin.peo.timeline import simulate


def even(ranks: int = 32, batch: int = 64) -> Traffic:
    return Traffic(MODELS["deepseek-v3"], even_shares(ranks, 256 // ranks), batch)


def test_ranking_is_sorted_and_what_it_says_is_so():
    hardware, batches = HARDWARE["H800"], [even(batch=batch) for batch in (16, 128)]
    ranked = rank_schedules(hardware, batches)
    keys = [(-round(one.mean_gain, 2), one.schedule.num_rounds, one.comm_sms) for one in ranked]
    assert keys == sorted(keys)
    best, base = ranked[0], unsplit_us(hardware, batches)
    again = simulate(best.schedule, hardware, batches[1]).total_us
    assert best.total_us[128] == again
    assert best.gain[128] == base[128] / again - 1.0
    assert best.is_worth_it
    assert {one.schedule.num_rounds for one in rank_schedules(hardware, batches, 4)} == {4}


def test_an_unpatched_buffer_gains_nothing_in_the_model():
    """Its kernels take the device, so nothing overlaps: splitting only costs."""
    stock = stock_candidate(HARDWARE["H800"], [even(batch=batch) for batch in (4, 128)], 4)
    assert max(stock.gain.values()) < 0.0
    assert not stock.is_worth_it


def test_the_model_stands_beside_the_claims():
    found = distances(HARDWARE["H20"], 16)
    assert [(one.claim.family, one.claim.batch) for one in found] == [
        ("DPSK", 4), ("DPSK", 128), ("QWEN", 16), ("QWEN", 16)
    ]  # fmt: skip
    assert all(np.isfinite(one.modelled) for one in found)
    assert distances(HARDWARE["H20"], 7) == []


def test_experts_that_cannot_be_split_are_refused():
    """In one line; the counts that can be tried are the divisors from 2 to 10."""
    assert split_counts(60) == [2, 3, 4, 5, 6, 10]
    assert split_counts(7) == [7]
    assert split_counts(11) == []
    with pytest.raises(PluginError, match="PEO: found 1 local experts on 256 ranks, 78 SMs, expected") as error:
        rank_schedules(HARDWARE["H20"], [even(256)])
    assert "\n" not in str(error.value)
