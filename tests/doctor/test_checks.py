"""What comes of a check, whatever happens in it."""

from __future__ import annotations

import pytest
import torch

from eplb_plugin import PluginError
from eplb_plugin.doctor import checks
from eplb_plugin.doctor.checks import Check, expect, expect_equal, one_line, run_checks
from eplb_plugin.doctor.site import Skipped


def raise_deep() -> None:
    raise ValueError("of two\nlines")


def run(where: str) -> dict[str, int]:
    if where == "skips":
        raise Skipped("no such thing here")
    if where == "fails":
        raise_deep()
    return {"bytes": 1234567}


CHECK = Check("one", "it holds", run)


def test_whatever_a_check_raises_is_its_result() -> None:
    """In one line that says where; the traceback is kept for whoever mends it."""
    (result,) = run_checks([CHECK], "fails")
    assert result.status == "failed"
    assert result.detail.startswith("ValueError at test_checks.py:")
    assert result.detail.endswith(": of two lines")
    assert "raise_deep()" in result.trace
    assert next(run_checks([CHECK], "skips")).detail == "no such thing here"
    assert next(run_checks([CHECK], "works")).figures == {"bytes": 1234567}


def test_after_ten_minutes_nothing_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left is skipped, with the reason."""
    monkeypatch.setattr(checks, "MOST_SECONDS", -1.0)
    assert [(one.status, one.detail) for one in run_checks([CHECK, CHECK], "works")] == [
        ("skipped", "-1 s were over")
    ] * 2


def test_the_first_entry_that_differs_is_named() -> None:
    """With its place and how many there are; other shapes and types are told before any value."""
    expect_equal("x", torch.tensor([1, 2]), torch.tensor([1, 2]))
    with pytest.raises(
        PluginError, match=r"^x: found 5 at \[1, 0\] \(2 of 4 entries differ\), expected 3; fix: report"
    ):
        expect_equal("x", torch.tensor([[1, 2], [5, 6]]), torch.tensor([[1, 2], [3, 4]]))
    with pytest.raises(PluginError, match=r"^x: found \[2\] torch.int64, expected \[2\] torch.int32"):
        expect_equal("x", torch.tensor([1, 2]), torch.tensor([1, 2], dtype=torch.int32))
    with pytest.raises(PluginError, match=r"^x: found \[1\] torch.int64, expected \[2\] torch.int64"):
        expect_equal("x", torch.tensor([1]), torch.tensor([1, 2]))


def test_what_does_not_hold_is_one_line() -> None:
    """A PluginError as it is."""
    expect("x", True, found=1, expected=2)
    with pytest.raises(PluginError, match=r"^x: found 1, expected 2; fix: report it") as caught:
        expect("x", False, found=1, expected=2)
    assert one_line(caught.value) == str(caught.value)
