"""The one exception of users: one line, whatever it is made of."""

from __future__ import annotations

import pytest

from eplb_plugin.errors import PluginError, mismatch


@pytest.mark.parametrize("text", ["a: b c", "a:\n  b\tc", "\na: b   c\n"])
def test_a_message_is_one_line(text: str) -> None:
    """Also where what it tells of has several."""
    assert str(PluginError(text)) == "a: b c"


def test_found_expected_and_fix() -> None:
    """In this order, of anything that can be printed."""
    error = mismatch("layers", found=[1, 2], expected={"one": 3}, fix="pass\none")
    assert isinstance(error, PluginError)
    assert str(error) == "layers: found [1, 2], expected {'one': 3}; fix: pass one"
