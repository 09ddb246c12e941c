"""Columns of nothing but shared experts: certain where the routed ones are counted, else only if it is plain."""

from __future__ import annotations

import numpy as np
import pytest

from eplb_plugin.workloads.shared_experts import LEAST_ROWS, shared_columns

ROUTED = np.argsort(np.random.default_rng(0).random((2, LEAST_ROWS, 8)), axis=2)[:, :, :3]  # experts 0 to 7


def beside(last: object) -> np.ndarray:
    column = np.broadcast_to(np.asarray(last), ROUTED.shape[:2])[..., None]
    return np.concatenate([ROUTED, column], axis=2)


@pytest.mark.parametrize(
    ("last", "expected"),
    [(8, True), (np.arange(2 * LEAST_ROWS).reshape(2, -1) % 3 + 8, True), (7, False), (-1, False)],
)
def test_ids_beyond_the_routed_experts(last: object, expected: bool) -> None:
    """One or several, wherever the column is; a column of padding is none, nor one that names a single routed one."""
    ids = beside(last)
    assert shared_columns(ids, 8).tolist() == [False] * 3 + [expected]
    assert shared_columns(ids[:, :, ::-1], 8).tolist() == [expected] + [False] * 3
    ids[0, 0, 3] = 0
    assert not shared_columns(ids, 8).any()


def test_padding_beside_shared_ids_is_no_objection() -> None:
    """Rows of padding are empty in all columns."""
    ids = beside(8)
    ids[:, 5] = -1
    assert shared_columns(ids, 8).tolist() == [False] * 3 + [True]
    assert shared_columns(np.concatenate([ids] * 2, axis=1), None).tolist() == [False] * 3 + [True]


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (beside(8), True),
        (beside(9), True),  # expert 8 was chosen by nobody
        (beside(7), False),  # a routed one
        (beside(np.arange(LEAST_ROWS) % 2 + 8), False),  # could be routed
        (beside(8)[:, : LEAST_ROWS // 2 - 1], False),  # too few rows
        (beside(8)[:1], False),  # one layer: the favourite of a router
        (beside(8)[:, :, ::-1], False),  # not the last
        (beside(8)[:, :, 3:], False),  # nothing beside it
    ],
)
def test_without_the_number_of_experts(ids: np.ndarray, expected: bool) -> None:
    """The last column alone, with one id throughout that is above all others, in rows enough."""
    assert shared_columns(ids, None).any() == expected
    assert not shared_columns(ids, None)[:-1].any()


def test_a_trace_of_shared_experts_alone_is_none() -> None:
    """Something else is wrong then, and is refused elsewhere."""
    assert not shared_columns(np.full((2, 90, 2), 9), 8).any()
