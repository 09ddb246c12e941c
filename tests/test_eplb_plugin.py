"""The package itself: what compiles kernels is loaded on first use, under the names that it exports."""

from __future__ import annotations

import pytest

import eplb_plugin


def test_every_name_leads_to_the_thing_of_that_name() -> None:
    """Also those that are looked up late; each time the same."""
    for name in eplb_plugin.__all__:
        found = getattr(eplb_plugin, name)
        assert found.__name__ == name
        assert found is getattr(eplb_plugin, name)
        assert found.__module__.startswith("eplb_plugin.")
    assert set(eplb_plugin._LAZY) <= set(eplb_plugin.__all__)


def test_other_names_are_none() -> None:
    """As of any module."""
    with pytest.raises(AttributeError, match="module 'eplb_plugin' has no attribute 'plann'"):
        _ = eplb_plugin.plann
