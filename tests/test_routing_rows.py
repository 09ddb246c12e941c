"""Which rows are a routing: those that name an expert, and none twice."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplb_plugin.routing_rows import name_twice, report_left_out, routed
from strategies import QUICK

IDS = st.lists(st.lists(st.integers(-1, 4), min_size=3, max_size=3), min_size=1, max_size=8)


@given(IDS)
@QUICK
def test_a_row_that_names_an_expert_twice_is_emptied(given: list[list[int]]) -> None:
    """Wherever in the row it stands; -1 names nobody, however often; all other rows stay."""
    rows = np.array([given], np.int16)
    twice = [any(row.count(expert) > 1 for expert in row if expert >= 0) for row in given]
    before = rows.copy()
    assert name_twice(rows).tolist() == [twice]
    found = routed(rows, "rows")
    assert found.dtype == rows.dtype
    assert found[0].tolist() == [[-1] * 3 if bad else row for bad, row in zip(twice, given, strict=True)]
    assert np.array_equal(rows, before)


def test_one_expert_a_token_cannot_be_named_twice() -> None:
    """Rows of one id, and none at all."""
    assert name_twice(np.zeros((2, 5, 1), int)).sum() == 0
    assert name_twice(np.zeros((2, 0, 4), int)).shape == (2, 0)


@pytest.mark.parametrize(("left_out", "given", "said"), [(0, 0, False), (1, 1000, False), (1, 999, True)])
def test_only_more_than_a_trace_is_news(
    caplog: pytest.LogCaptureFixture, left_out: int, given: int, said: bool
) -> None:
    """One line that says how many, of what."""
    with caplog.at_level(logging.WARNING, "eplb_plugin"):
        report_left_out("window", left_out, given)
    assert caplog.messages == (
        ["window: 1 of 999 rows (0.1 %) name an expert twice, which no router does: they are left out"] if said else []
    )


def test_padding_is_no_row_in_the_report(caplog: pytest.LogCaptureFixture) -> None:
    """The share is of the rows that name anybody."""
    routed(np.array([[[3, 1], [0, 0], [-1, -1], [-1, -1]]]), "trace.npz")
    assert "trace.npz: 1 of 2 rows (50.0 %)" in caplog.text
