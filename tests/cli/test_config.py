"""`eplb-plugin config`: what a settings file resolves to, or what is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from cli_files import Answer
from eplb_plugin.settings.config import PluginConfig, config_schema, load_config

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("name", ["default.yaml", "prefill.yaml", "decode.yaml"])
def test_config_check_prints_what_a_file_resolves_to(call: Callable[..., Answer], name: str) -> None:
    """A good file: exit code 0, and every setting with its value, as YAML or as JSON."""
    expected = load_config(CONFIGS / name).model_dump(mode="json")
    code, out, err = call("config", "check", CONFIGS / name)
    assert (code, yaml.safe_load(out), err) == (0, expected, "")
    code, out, err = call("config", "check", CONFIGS / name, "--json")
    assert (code, json.loads(out), err) == (0, expected, "")


def test_config_check_output_is_a_config(call: Callable[..., Answer], tmp_path: Path) -> None:
    """What is printed can be saved and checked again."""
    _, first, _ = call("config", "check", CONFIGS / "decode.yaml")
    (tmp_path / "again.yaml").write_text(first)
    assert call("config", "check", tmp_path / "again.yaml") == (0, first, "")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("polcy: x", "polcy: found unknown key, expected one of "),
        (
            "sample_rows: 1",
            "sample_rows: found 1, expected an integer in 256..65536; fix: the nearest valid value is 256",
        ),
        ("a: [", "not valid YAML ("),
        ("a: 1\na: 2", "not valid YAML (key 'a' given twice"),
        ("- 1", "found list, expected a mapping of settings; fix: write key: value"),
    ],
)
@pytest.mark.parametrize("words", [(), ("--json",)])
def test_config_check_refuses(
    call: Callable[..., Answer], tmp_path: Path, text: str, line: str, words: tuple[str, ...]
) -> None:
    """A bad file: exit code 2, nothing on stdout, one line on stderr."""
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    code, out, err = call("config", "check", path, *words)
    assert (code, out) == (2, "")
    assert err.startswith(f"eplb-plugin: {path}: {line}")
    assert err.endswith("\n")
    assert len(err.splitlines()) == 1


def test_config_check_missing_file(call: Callable[..., Answer], tmp_path: Path) -> None:
    """A missing file and a folder are refused like a bad file."""
    for path in (tmp_path / "missing.yaml", tmp_path):
        code, out, err = call("config", "check", path)
        assert (code, out) == (2, "")
        assert err.startswith(f"eplb-plugin: {path}: cannot be read (")
        assert len(err.splitlines()) == 1


@pytest.mark.parametrize("words", [(), ("--json",)])
def test_config_schema(call: Callable[..., Answer], words: tuple[str, ...]) -> None:
    """The schema is printed as JSON, with or without asking for it."""
    code, out, err = call("config", "schema", *words)
    assert (code, out, err) == (0, config_schema() + "\n", "")
    assert set(json.loads(out)["properties"]) == set(PluginConfig.model_fields)
