"""Seals: the end of every staging row says which expert it is and what its bytes add up to at the source.

The sum is weighted by position and covers every word, not a sample: at the speed of memory that costs little beside a
transfer (docs/migration.md), and any single wrong word changes it for certain, because the weights are odd.
"""

from __future__ import annotations

from functools import cache

import torch

SEAL_WORDS = 2  # int64 words at the end of a row: the sum, and nothing (rows stay aligned to 16 bytes)
_BLOCK = 1 << 12  # words; the weights of longer rows are products of two
_MIX = 0x9E3779B97F4A7C15 - (1 << 64)  # the golden ratio, odd


def seal(rows: torch.Tensor, identity: torch.Tensor) -> None:
    """rows: [n, row_bytes] uint8; identity: [n] int64, what each row is to be (expert, layer, migration)."""
    rows.view(torch.int64)[:, -SEAL_WORDS] = _sums(rows, identity)


def broken(rows: torch.Tensor, identity: torch.Tensor) -> list[int]:
    """Rows whose bytes or identity are not what was sealed."""
    wrong = rows.view(torch.int64)[:, -SEAL_WORDS] != _sums(rows, identity)
    return torch.nonzero(wrong).flatten().tolist()


def _sums(rows: torch.Tensor, identity: torch.Tensor) -> torch.Tensor:
    words = rows.view(torch.int64)[:, :-SEAL_WORDS]
    return _weighted(words) + identity.to(words.device) * _MIX


def _weighted(words: torch.Tensor) -> torch.Tensor:
    """[n, W] int64 -> [n]: sum of words times the weight of their position, modulo 2**64."""
    width = words.shape[1]
    if width <= _BLOCK:
        return _product(words, _weights(width, words.device))
    blocks = width // _BLOCK
    inner, outer = _weights(_BLOCK, words.device), _weights(blocks, words.device)
    rest = _product(words[:, blocks * _BLOCK :], _weights(width - blocks * _BLOCK, words.device) * _MIX)
    # row by row: rows of a batch are not contiguous, and would be copied
    whole = [_product(_product(row[: blocks * _BLOCK].view(blocks, _BLOCK), inner)[None], outer) for row in words]
    return torch.cat(whole) + rest


def _product(matrix: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    if matrix.device.type == "cpu":
        return matrix @ weights
    return (matrix * weights).sum(1)  # no integer product on accelerators


@cache
def _weights(count: int, device: torch.device) -> torch.Tensor:
    position = torch.arange(1, count + 1, dtype=torch.int64, device=device)
    mixed = position * _MIX
    return (mixed ^ (mixed >> 29)) * _MIX | 1
