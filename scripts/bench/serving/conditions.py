"""Under what arms are compared: a rate of the links and a number of requests in flight."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .rates import rounded

_RATE = re.compile(r"none|\d+(\.\d+)?|rule(?P<how>[*/](?P<by>\d+(\.\d+)?))?")


@dataclass(frozen=True)
class Condition:
    """rate: Mbit/s of every link in both directions; None: no limit."""

    rate: float | None
    concurrency: int

    @property
    def name(self) -> str:
        links = "no limit" if self.rate is None else f"{self.rate:g} Mbit/s"
        return f"{links}, {self.concurrency} in flight"


def checked_rate(word: str) -> str:
    """none, rule, rule*2, rule/2 or a number of Mbit/s. Raises ValueError."""
    if _RATE.fullmatch(word) is None or (word != "none" and _number(word) == 0.0):
        raise ValueError(f"found rate {word!r}, expected none, rule, rule*2, rule/2 or a number of Mbit/s")
    return word


def rate_of(word: str, by_rule: float) -> float | None:
    """A checked word's rate, where the rule gives `by_rule` Mbit/s."""
    if word == "none":
        return None
    if not word.startswith("rule"):
        return float(word)
    factor = 1.0 if word == "rule" else _number(word)
    return rounded(by_rule / factor if "/" in word else by_rule * factor)


def _number(word: str) -> float:
    return float(re.sub(r"^rule[*/]?", "", word) or 1)
