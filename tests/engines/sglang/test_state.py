"""The plugin of a scheduler process: there from activation on."""

from __future__ import annotations

from typing import Any

import pytest

from eplb_plugin.engines.sglang import state
from eplb_plugin.engines.sglang.state import get_adapter, set_adapter


def test_there_is_none_before_activation(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hook that runs too early is a mistake of ours, and said so; the last that was set counts, none again too."""
    monkeypatch.setattr(state, "_adapter", None)
    with pytest.raises(AssertionError, match="before activate"):
        get_adapter()
    one: Any = object()
    set_adapter(one)
    assert get_adapter() is one
    set_adapter(None)
    with pytest.raises(AssertionError, match="before activate"):
        get_adapter()
