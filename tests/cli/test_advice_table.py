"""What `advise` prints of figures that are not all there."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from eplb_plugin.cli.advice_table import show_advice
from eplb_plugin.observe.advice import Both, Candidate, Outcome, Survey
from eplb_plugin.observe.recommendation import Recommendation

PAIR = Both(0.5, 0.25)
KNOWN = Outcome(
    candidate=Candidate("affinity", "weighted", 4), balancedness=PAIR, work_saved=PAIR, cross_node_copies=PAIR,
    copies_saved=PAIR, busiest_ingress=PAIR, first_moves=PAIR, next_moves=Both(3, 5), slots=20, gigabytes_moved=1.5,
    memory_gib=0.25, break_even_tokens=Both(3e4, 1e5),
)  # fmt: skip
UNKNOWN = replace(
    KNOWN, cross_node_copies=None, copies_saved=None, busiest_ingress=None, gigabytes_moved=None, memory_gib=None,
    break_even_tokens=None,
)  # fmt: skip
NEVER = replace(KNOWN, break_even_tokens=Both(3e4, math.inf))


@pytest.mark.parametrize(
    ("outcome", "row", "price"),
    [
        (KNOWN, "0.38±.12 -38±12% -38±12% 0.38 20% 100k", "4 of 20 slots, 1.5 GB, repaid after 100k tokens, 100 steps"),
        (UNKNOWN, "-38±12% – – 20% –", "moves 4 of 20 slots\n"),
        (NEVER, "-38±12% 0.38 20% never", "moves 4 of 20 slots, 1.5 GB\n"),
    ],
)
def test_what_is_not_known_is_left_out(
    outcome: Outcome, row: str, price: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A dash in the table, no figure in the advice; and of two directions the worse one counts."""
    made = Survey([outcome], PAIR, outcome.cross_node_copies, True, 128, 0.1)
    show_advice(made, Recommendation(True, outcome, ["because"]), 58, True, 1000.0)
    printed = capsys.readouterr().out
    assert row in " ".join(printed.split())
    assert price in printed
    assert ("cross-node copies per token" in printed) == (outcome.cross_node_copies is not None)
    assert ("GiB per rank in 58 layers" in printed) == (outcome.memory_gib is not None)
    assert printed.endswith("- because\n")


def test_rows_fit_into_80_columns_and_the_best_is_first_and_marked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all columns and the longest names: one line a candidate."""
    monkeypatch.setenv("COLUMNS", "80")
    whole = replace(KNOWN, step_balancedness=PAIR, break_even_tokens=Both(2.6e6, 2.8e6))
    less = replace(whole, candidate=Candidate("deepseek", "weighted", 128, exact=True), work_saved=Both(0.1, 0.1))
    made = Survey([less, whole], PAIR, PAIR, True, 128, 0.1, PAIR)
    show_advice(made, Recommendation(True, whole, []), 58, True, 1000.0)
    printed = capsys.readouterr().out
    rows = [line.rstrip() for line in printed.splitlines() if line.lstrip().startswith(("+128", "→4"))]
    assert rows == [
        "→4   affinity weighted       0.38±.12 0.38  -38±12% -38±12% 0.38    20%   2.8M",
        "+128 deepseek weighted exact 0.38±.12 0.38  -10±0%  -38±12% 0.38    20%   2.8M",
    ]
