"""Seals break for every change of a row, and for a row that is another's."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from eplb_plugin.migration import checksum
from eplb_plugin.migration.checksum import seal
from strategies import QUICK


def broken(rows: torch.Tensor, identity: torch.Tensor) -> list[int]:
    return torch.nonzero(checksum.broken(rows, identity)).flatten().tolist()


def sealed(words: int, count: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    rows = torch.randint(0, 256, (count, 8 * (words + 2)), dtype=torch.uint8)
    identity = torch.arange(count) + 100
    seal(rows, identity)
    return rows, identity


@given(st.sampled_from([1, 7, 4096, 4097, 8192, 9000]), st.data())
@QUICK
def test_any_changed_byte_is_seen(words: int, data: st.DataObject) -> None:
    """Rows shorter and longer than a block of weights."""
    rows, identity = sealed(words)
    assert broken(rows, identity) == []
    place = data.draw(st.integers(0, 8 * words + 7))
    rows[1, place] ^= data.draw(st.integers(1, 255))
    assert broken(rows, identity) == [1]


@given(st.sampled_from([2, 7, 4096, 9000]), st.data())
@QUICK
def test_exchanged_words_are_seen(words: int, data: st.DataObject) -> None:
    """A plain sum would not notice: a part of the row in another's place."""
    rows, identity = sealed(words)
    one, other = (data.draw(st.integers(0, words - 1)) for _ in range(2))
    view = rows.view(torch.int64)
    view[2, [one, other]] = view[2, [other, one]]
    assert broken(rows, identity) == ([2] if one != other else [])


def test_another_expert_is_seen() -> None:
    """Good bytes of the wrong expert, layer or migration."""
    rows, identity = sealed(5)
    assert broken(rows, identity + torch.tensor([0, 1, 0])) == [1]
    assert broken(rows.flip(0), identity) == [0, 2]


def test_zeros_are_no_row() -> None:
    """Memory that nothing arrived in."""
    assert broken(torch.zeros(2, 64, dtype=torch.uint8), torch.tensor([1, 2])) == [0, 1]
