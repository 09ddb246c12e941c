"""How a server is given the plugin's settings: by a flag, a file's name, or their content in the environment."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from eplb_plugin.engines.settings import (
    DISABLE,
    ENVIRONMENT,
    FLAG,
    add_flag,
    disabled,
    from_environment,
    to_environment,
)
from eplb_plugin.errors import PluginError
from eplb_plugin.settings.config import PluginConfig


@pytest.mark.parametrize(("value", "expected"), [(None, False), ("", False), ("0", False), ("1", True), ("true", True)])
def test_disabled(monkeypatch: pytest.MonkeyPatch, value: str | None, expected: bool) -> None:
    """By anything but nothing and 0."""
    monkeypatch.delenv(DISABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(DISABLE, value)
    assert disabled() is expected


def test_the_flag_names_a_file() -> None:
    """It is in a group of its own, and says what else it needs."""
    parser = argparse.ArgumentParser()
    add_flag(parser, "--enable-eplb")
    assert parser.parse_args([]).eplb_plugin_config is None
    assert parser.parse_args([FLAG, "a.yaml"]).eplb_plugin_config == "a.yaml"
    assert "needs --enable-eplb" in " ".join(parser.format_help().split())


@pytest.mark.parametrize("value", [None, ""])
def test_no_settings(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    """An empty variable is none."""
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    if value is not None:
        monkeypatch.setenv(ENVIRONMENT, value)
    assert from_environment() is None


def test_a_file_or_its_content(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What a launcher read is what the processes find that it starts, without the file."""
    path = tmp_path / "eplb.yaml"
    path.write_text("policy: balanced\nbudget: {max_moved_slots: 3}\n")
    monkeypatch.setenv(ENVIRONMENT, str(path))
    config = from_environment()
    assert config == PluginConfig(policy="balanced", budget={"max_moved_slots": 3})  # type: ignore[arg-type]
    assert config is not None
    to_environment(config)
    path.unlink()
    assert from_environment() == config


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("/nowhere/eplb.yaml", "/nowhere/eplb.yaml: cannot be read"),
        (' {"policy": ', f"{ENVIRONMENT}: not valid JSON"),
        ('{"policy": "best"}', f"{ENVIRONMENT}: policy: found 'best'"),
    ],
)
def test_bad_settings_are_refused(monkeypatch: pytest.MonkeyPatch, value: str, line: str) -> None:
    """In one line that names the file or the variable."""
    monkeypatch.setenv(ENVIRONMENT, value)
    with pytest.raises(PluginError) as caught:
        from_environment()
    assert str(caught.value).startswith(line)
