"""Which steps of a window are kept, and what is in their places."""

from __future__ import annotations

import pytest
import torch

from eplb_plugin.counts import MOST_STEPS
from eplb_plugin.recording.kept_steps import KeptSteps

CPU = torch.device("cpu")


def load_of(step: int) -> torch.Tensor:
    return torch.tensor([[step, 1], [step + 5, 2]], dtype=torch.int32)


@pytest.mark.parametrize("count", [1, MOST_STEPS, MOST_STEPS + 1, 2 * MOST_STEPS - 1, 2 * MOST_STEPS, 1000, 3001])
def test_a_window_of_any_length_is_covered_evenly(count: int) -> None:
    """All steps where there are places; else neighbours are never further apart than twice the least distance, from the
    first step on to the end, and every place has the load of the step that it says.
    """
    kept = KeptSteps(2, 2, CPU)
    where = kept.loads.data_ptr()
    for step in range(count):
        kept.add(load_of(step))
    numbers = sorted(kept.numbers)
    assert len(set(numbers)) == min(count, MOST_STEPS)
    apart = [after - before for before, after in zip(numbers, [*numbers[1:], count], strict=True)]
    assert numbers[0] == 0
    assert max(apart) <= 2 * min(apart[:-1], default=1)
    assert max(apart) <= max(1, 2 * count // MOST_STEPS)
    for place, number in enumerate(kept.numbers):
        assert torch.equal(kept.loads[place], load_of(number))
    assert kept.loads.data_ptr() == where
    assert kept.over == count


def test_an_idle_rank_keeps_nothing_of_the_same_steps() -> None:
    """Its places are those of the others, empty, whatever was in them."""
    busy, idle = KeptSteps(2, 2, CPU), KeptSteps(2, 2, CPU)
    for step in range(300):
        busy.add(load_of(step))
        idle.add(None if step % 3 else load_of(step))
    assert busy.numbers == idle.numbers
    for place, number in enumerate(idle.numbers):
        assert torch.equal(idle.loads[place], torch.zeros(2, 2) if number % 3 else load_of(number))


def test_a_new_window_begins_again() -> None:
    kept = KeptSteps(2, 2, CPU)
    for step in range(200):
        kept.add(load_of(step))
    kept.reset()
    assert (kept.numbers, kept.over) == ([], 0)
    kept.add(load_of(7))
    assert kept.numbers == [0]
    assert torch.equal(kept.loads[0], load_of(7))
