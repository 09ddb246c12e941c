"""Rebalances as a server's log tells them: the line of the planning rank, and nothing else in it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import NamedTuple

from ..errors import mismatch
from ..files import read_foreign

# `Assessment.__str__` of runtime/outcome.py after what runtime/proposal.py puts before it
_LINE = re.compile(
    r"rebalance (?P<number>\d+) of (?P<model>.+?): planned balancedness (?P<before>[\d.]+) -> (?P<after>[\d.]+)"
    r"(?:, cross-node copies/token (?P<old>[\d.]+) -> (?P<new>[\d.]+))?, (?P<moved>\d+) of (?P<slots>\d+) slots move"
)


class Rebalance(NamedTuple):
    """balancedness, copies: of the window that has just been served, under the placement that served it, which was not
    planned on it, and under the new plan. copies: cross-node, per token; None on one node."""

    number: int
    balancedness: tuple[float, float]
    copies: tuple[float, float] | None
    moved_slots: int
    slots: int


def read_rebalances(path: str | os.PathLike[str]) -> Mapping[str, list[Rebalance]]:
    """By model, in the order of the log. Raises PluginError if there is none."""
    found: dict[str, list[Rebalance]] = {}
    for line in _LINE.finditer(read_foreign(path, "server's log").decode(errors="replace")):
        copies = None if line["old"] is None else (float(line["old"]), float(line["new"]))
        balance = float(line["before"]), float(line["after"])
        one = Rebalance(int(line["number"]), balance, copies, int(line["moved"]), int(line["slots"]))
        found.setdefault(line["model"], []).append(one)
    if not found:
        fix = "pass the log of a server with the plugin, after its first rebalance"
        raise mismatch(str(path), found="no rebalance", expected="lines `rebalance 1 of MODEL: planned …`", fix=fix)
    return found
