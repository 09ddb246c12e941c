"""Which releases are installed, and what is said of an untested one."""

from __future__ import annotations

import logging

import pytest

from eplb_plugin.engines.releases import ENGINES, Engine


def test_installed_under_any_of_its_names() -> None:
    """The first distribution that is installed counts; an engine that is not installed is None."""
    assert Engine("x", "X", ("no-such-distribution", "numpy"), ()).installed
    assert Engine("x", "X", ("no-such-distribution",), ()).installed is None


def test_an_untested_release_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """One warning for a release that was not tested, none for one of those that were."""
    engine = Engine("x", "X", ("numpy",), ("0.1", "0.0"))
    with caplog.at_level(logging.WARNING):
        engine.warn_untested(logging.getLogger("test"))
    assert caplog.messages == [
        f"X {engine.installed} is untested (tested: 0.1, 0.0); all hooked signatures are checked"
    ]
    caplog.clear()
    Engine("x", "X", ("numpy",), ("0.1", engine.installed or "")).warn_untested(logging.getLogger("test"))
    assert caplog.messages == []


def test_the_installed_engine_is_a_tested_one() -> None:
    """These tests run against the first release that the plugin says it was tested with."""
    for engine in ENGINES:
        assert engine.installed in (None, engine.tested[0])
