"""Whatever a settings file says, the end is valid settings or one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from eplb_plugin.errors import PluginError
from eplb_plugin.settings.config import (
    BudgetConfig,
    ExactConfig,
    LoggingConfig,
    MetricsConfig,
    MigrationConfig,
    PeoConfig,
    PluginConfig,
    PriceConfig,
    RebalanceConfig,
    TopologyConfig,
    load_config,
    parse_config,
)

KEYS = sorted(PluginConfig.model_fields)


def load_text(folder: Path, text: str | bytes) -> PluginConfig:
    path = folder / "settings.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    return load_config(path)


def outcome(call: Callable[..., PluginConfig], *args: Any) -> PluginConfig | PluginError:
    try:
        return call(*args)
    except PluginError as error:
        return error


def one_line(error: PluginError) -> bool:
    return len(str(error).splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("policy: affinity\npolicy: balanced\n", "'policy' given twice"),
        ("budget: {max_moved_slots: 1, max_moved_slots: 2}\n", "'max_moved_slots' given twice"),
        ("policy: [", "not valid YAML"),
        ("policy: affinity\n\tdispatch: hash\n", "not valid YAML"),
        ("? {a: 1}\n: 2\n", "not valid YAML"),
        ("a: 2020-13-45\n", "not valid YAML"),
        ("!!map [[a, b]]\n", "not valid YAML"),
        ("a: !!bool maybe\n", "not valid YAML"),
        ("a: !!int ''\n", "not valid YAML"),
        ("a: !!timestamp soon\n", "not valid YAML"),
        ("!!python/object/apply:os.system [exit]\n", "not valid YAML"),
        ("a: 1\n---\nb: 2\n", "not valid YAML"),
        ("window_size: 1" + "0" * 5000, "digits"),
        ("window_size: 0x1" + "0" * 5000, "window_size"),
        (b"\xff\xfe\x00policy", "cannot be read"),
        (b"\x00\x01\x02", "not valid YAML"),
        (b"policy: \xc3\x28\n", "cannot be read"),
        ("[" * 10_000, "not valid YAML"),
        ("a: " + "{b: " * 5_000, "not valid YAML"),
        ("a:\n" + "".join(" " * depth + "- \n" for depth in range(2000)), "a"),
    ],
)
def test_bad_yaml_refused(tmp_path: Path, text: str | bytes, words: str) -> None:
    """A file that is not YAML, or says a key twice, is refused in one line with the file's name."""
    with pytest.raises(PluginError, match=r"settings\.yaml: ") as caught:
        load_text(tmp_path, text)
    assert one_line(caught.value)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_unreadable_refused(tmp_path: Path) -> None:
    """A missing file, a directory and an impossible name are refused in one line."""
    for path in (tmp_path / "missing.yaml", tmp_path, Path("a\0b"), tmp_path / "two\nlines.yaml"):
        with pytest.raises(PluginError, match="cannot be read") as caught:
            load_config(path)
        assert one_line(caught.value)


# any text, any data

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=8) | st.integers() | st.none(), inner, max_size=4)
    ),
    max_leaves=12,
)
sections = {
    "topology": TopologyConfig, "budget": BudgetConfig, "price": PriceConfig, "peo": PeoConfig,
    "exact": ExactConfig, "logging": LoggingConfig, "metrics": MetricsConfig, "migration": MigrationConfig,
    "rebalance": RebalanceConfig,
}  # fmt: skip


@st.composite
def nearly(draw: st.DrawFn) -> Any:
    """Data of the right outline with anything at the leaves, so that every branch of the messages is reached."""

    def fill(model: type[BaseModel]) -> dict[str, Any]:
        keys = draw(st.lists(st.sampled_from(sorted(model.model_fields)), unique=True, max_size=3))
        return {key: fill(sections[key]) if key in sections and draw(st.booleans()) else draw(plain) for key in keys}

    return fill(PluginConfig)


def valid_or_refused(values: Any) -> None:
    result = outcome(parse_config, values, "file.yaml")
    if isinstance(result, PluginError):
        assert one_line(result)
        assert str(result).startswith("file.yaml: ")
        assert "; fix: " in str(result)
        assert len(str(result)) < 600
    else:
        assert parse_config(result.model_dump(mode="json"), "") == result


@settings(max_examples=300, deadline=None)
@given(plain | nearly())
@example({"x[": 1})
@example({"topology": {"x[": 1}})
@example({"topology": {1: 2}})
@example({"topology": {"": None}})
@example({"\u2028": 1})
@example({"policy": "\ud800"})
@example({"\ud800": 1})
@example({"k" * 10_000: 1})
@example({"sample_rows": 10**5000})
@example({"balance_tolerance": 10**400})
@example({"logging": {"rebalances": "\n"}})
def test_any_data_is_valid_or_refused_in_one_line(values: Any) -> None:
    """Whatever the data, the end is valid settings or one line; never another exception."""
    valid_or_refused(values)


def test_deep_and_cyclic_data_refused() -> None:
    """Data nested without end is refused in one line as well."""
    deep: Any = 1
    for _ in range(100_000):
        deep = [deep]
    cycle: dict[str, Any] = {}
    cycle["budget"] = cycle
    for values in ({"topology": deep}, {"budget": {"max_moved_slots": deep}}, {"unknown": deep}, cycle):
        valid_or_refused(values)


LINES = """\
policy: balanced
topology:
  nodes: 2
topology: {nodes: 2}
budget: &a {max_moved_slots: 1}
logging: *a
<<: *a
? a
- 1
!!set {a}
!!binary =
!!int x
!!omap [a: 1]
!!null x
a: !!float
|
>
---
...
%YAML 9.9
'
"
{
]
window_size: 1_000
step_interval: 1:00
sample_rows: 0o17
""".splitlines()
yaml_lines = st.lists(st.sampled_from(LINES), max_size=5).map("\n".join)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=yaml_lines | st.text(max_size=40) | nearly().map(yaml.dump))
@example(text="=: =")
@example(text="!!map ab")
@example(text="!!timestamp x")
@example(text="a: !!int _")
@example(text="a: 1:x")
@example(text="!!pairs [1]")
@example(text="<<: [1]")
@example(text="a: &a {budget: *a}")
def test_any_yaml_is_valid_or_refused_in_one_line(tmp_path: Path, text: str) -> None:
    """Whatever the file says, the end is valid settings or one line; never another exception."""
    yaml_valid_or_refused(tmp_path, text)


def yaml_valid_or_refused(folder: Path, text: str) -> None:
    result = outcome(load_text, folder, text)
    if isinstance(result, PluginError):
        assert one_line(result)
        assert "settings.yaml: " in str(result)
        assert len(str(result)) < 2000


@pytest.mark.full
@settings(max_examples=5000, deadline=None)
@given(plain | nearly())
def test_any_data_5_000(values: Any) -> None:
    """The same with other inputs every time."""
    valid_or_refused(values)


@pytest.mark.full
@settings(max_examples=5000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=yaml_lines | st.text(max_size=40) | nearly().map(yaml.dump))
def test_any_yaml_5_000(tmp_path: Path, text: str) -> None:
    """The same with other inputs every time."""
    yaml_valid_or_refused(tmp_path, text)
