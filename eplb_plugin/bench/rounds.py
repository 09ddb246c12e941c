"""In which order arms are measured: every arm once in every round, each in every place equally often."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")


def rotated(items: Sequence[Item], turn: int) -> list[Item]:
    """The items in the order of round `turn`: one further each time, and every other time through backwards, so that an
    item does not always follow the same one."""
    if not items:
        return []
    first = turn % len(items)
    order = [*items[first:], *items[:first]]
    return order[::-1] if turn // len(items) % 2 else order
