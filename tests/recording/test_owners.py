"""Ranks that route the same tokens: what they may differ in, and what is refused."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from eplb_plugin import PluginError
from eplb_plugin.recording import owners
from eplb_plugin.recording.owners import COMPARED, differing_tokens, moved_selections, refuse_unequal_owners

TOKENS = np.array([900, 900, 700, 700])  # two groups of two ranks


def marks(*differing: int) -> np.ndarray:
    """[4, COMPARED]; differing: tokens in which each rank differs from the first of its group."""
    made = np.tile(np.arange(COMPARED), (4, 1))
    for rank, count in enumerate(differing):
        made[rank, :count] += 7
    return made


def check(*differing: int, tokens: np.ndarray = TOKENS) -> None:
    found = differing_tokens(marks(*differing), 2)
    assert found.tolist() == list(differing)
    refuse_unequal_owners(tokens, found, np.minimum(tokens, COMPARED), 2)


def test_few_tokens_may_differ_and_are_named_once(caplog: pytest.LogCaptureFixture) -> None:
    """One in a hundred: rounding. Said once for every group, however many windows follow."""
    owners._warn.cache_clear()
    with caplog.at_level(logging.WARNING, "eplb_plugin"):
        check(0, 0, 0, 0)
        assert not caplog.messages
        for _ in range(3):
            check(0, 1, 0, 5)
    assert [line.split(":")[0] for line in caplog.messages] == ["token-owner group 0", "token-owner group 1"]


@pytest.mark.parametrize(("differing", "group"), [((0, 0, 0, 6), 1), ((0, COMPARED, 0, 0), 0)])
def test_more_are_refused_by_the_group(differing: tuple[int, ...], group: int) -> None:
    with pytest.raises(PluginError, match=f"token-owner group {group}: found ranks that recorded different routing"):
        check(*differing)


def test_another_number_of_tokens_is_never_rounding() -> None:
    with pytest.raises(PluginError, match="token-owner group 1: found ranks"):
        check(0, 0, 0, 0, tokens=np.array([900, 900, 700, 701]))


def test_of_load_alone_what_went_elsewhere_is_counted() -> None:
    """Half the distance: a selection that moves leaves one expert and arrives at another."""
    load = np.array([[50, 30, 20], [49, 31, 20], [10, 10, 80], [10, 80, 10]])
    moved = moved_selections(load, 2)
    assert moved.tolist() == [0, 1, 0, 70]
    refuse_unequal_owners(TOKENS[:2], moved[:2], load[:2].sum(1), 2)
    with pytest.raises(PluginError, match="token-owner group 1"):
        refuse_unequal_owners(TOKENS, moved, load.sum(1), 2)
