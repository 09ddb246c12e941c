"""The load of a window, summed over ranks on the host: each token once, and the recorder begins anew."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.distributed as dist

from eplb_plugin.errors import PluginError
from eplb_plugin.recording.load import sum_load, take_load
from eplb_plugin.recording.recorder import Recorder
from processes import run_ranks
from recorded import route_layer


def rows(owner: int) -> torch.Tensor:
    """The first names an expert twice, the second none in its first column, the third none at all."""
    made = np.random.default_rng(owner).permuted(np.tile(np.arange(8), (20, 1)), axis=1)[:, :2]
    made[0, 0], made[1, 0], made[2] = made[0, 1], -1, -1
    return torch.from_numpy(made)


def summed(owners: int, unequal: bool) -> tuple[list, list, list, int] | str | None:
    recorder, rank = Recorder(2, 8, 2, 32, 64, torch.device("cpu")), dist.get_rank()
    recorder.expect([20])
    for layer in range(2):
        route_layer(recorder, layer, rows(rank if unequal else rank // owners))
    recorder.fold()
    load = take_load(recorder)
    left = int(recorder.load.sum()) + int(recorder.pairs.sum()) + int(recorder.num_tokens)
    try:
        window = sum_load(load(), dist.group.WORLD, owners, [3, 5])
    except PluginError as error:
        return str(error)
    if window is None:
        return None
    return window.load.tolist(), window.num_tokens.tolist(), window.left_out.tolist(), left


@pytest.mark.parametrize("owners", [1, 2])
def test_summed_over_owners(owners: int) -> None:
    first, *others = run_ranks(4, summed, owners, False)
    assert others == [None] * 3
    number = 4 // owners
    given = np.concatenate([rows(owner)[1:].numpy().ravel() for owner in range(number)])
    expected = np.bincount(given[given >= 0], minlength=8)
    assert first == ([expected.tolist()] * 2, [18 * number] * 2, [number] * 2, 0)


def test_unequal_owners_are_refused() -> None:
    first, *_ = run_ranks(4, summed, 2, True)
    assert "token-owner group 0: found ranks that recorded different routing" in first
