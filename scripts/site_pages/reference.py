"""Pages of the site that are made from the code: they cannot say something else than it does."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import typer
from source_links import SHIPPED
from typer.cli import get_docs_for_click

import eplb_plugin
from eplb_plugin.cli import _app
from eplb_plugin.observe.metrics import metrics
from eplb_plugin.settings.config import config_schema

ROOT = Path(__file__).resolve().parents[2]


def settings() -> str:
    """One table of the top keys, and one of every section, from the JSON schema."""
    schema = json.loads(config_schema())
    lines = [
        "# Settings",
        "",
        "Every key of the YAML file, as `eplb-plugin config schema` has them. `eplb-plugin config check FILE` prints "
        "what a file resolves to. [Shipped settings](shipped_settings.md) are complete files with reasons.",
        "",
        *_keys(schema, schema),
    ]
    for name, key in schema["properties"].items():
        for section in _sections(key, schema):
            lines += ["", f"## {name}", "", section.get("description", ""), "", *_keys(section, schema)]
    return "\n".join(lines)


def _keys(section: Mapping[str, Any], schema: Mapping[str, Any]) -> Iterator[str]:
    yield from ("| key | value | default | |", "|---|---|---|---|")
    for name, key in section["properties"].items():
        shown = f"[`{name}`](#{name})" if _sections(key, schema) and section is schema else f"`{name}`"
        default = key.get("default")
        left_out = "" if default is None else "see there" if isinstance(default, dict) else f"`{json.dumps(default)}`"
        # pydantic says once what a key and its section say alike
        meaning = key.get("description") or " ".join(way.get("description", "") for way in _sections(key, schema))
        yield f"| {shown} | {_values(key, schema)} | {left_out} | {meaning} |"


def _sections(key: Mapping[str, Any], schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    ways = [key, *key.get("anyOf", [])]
    return [schema["$defs"][way["$ref"].rsplit("/", 1)[1]] for way in ways if "$ref" in way]


def _values(key: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """What a key may hold, in words; a table's bars are escaped."""
    if "anyOf" in key:
        ways = [_values(way, schema) for way in key["anyOf"] if way.get("type") != "null"]
        return " or ".join(ways)
    if "$ref" in key:
        return "keys of its own"
    if "const" in key:
        return f"`{key['const']}`"
    if "enum" in key:
        return ", ".join(f"`{word}`" for word in key["enum"])
    if key.get("type") == "array":
        return f"list of {_values(key['items'], schema)}"
    limits = [
        f"{sign} {key[name]}"
        for name, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
        if name in key
    ]
    return " ".join([key.get("type", "any"), ", ".join(limits)]).strip()


def shipped_settings() -> str:
    lines = ["# Shipped settings", "", "The files of the folder `configs/`, each with its reasons."]
    for file in sorted((ROOT / "configs").glob("*.yaml")):
        lines += ["", f"## {file.name}", "", "```yaml", file.read_text().rstrip(), "```"]
    return "\n".join(lines)


def commands() -> str:
    command = typer.main.get_command(_app)
    return get_docs_for_click(obj=command, ctx=typer.Context(command), name="eplb-plugin", title="Commands")


def metric_table() -> str:
    lines = [
        "# Metrics",
        "",
        "What a server's `/metrics` shows of the plugin, from the planning rank. [Tools](../tools.md#metrics) says how "
        "to have them shown, and what to watch.",
        "",
        "| name | kind | labels | |",
        "|---|---|---|---|",
    ]
    for collector in vars(metrics()).values():
        (family,) = collector.describe()
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = ", ".join(f"`{label}`" for label in collector._labelnames)
        lines.append(f"| `{name}` | {family.type} | {labels} | {family.documentation} |")
    return "\n".join(lines)


def python() -> str:
    lines = ["# Python", "", "What the package promises to keep; it needs neither torch nor an engine."]
    for name in eplb_plugin.__all__:
        lines += ["", f"::: eplb_plugin.{name}"]
    lines += ["", "::: eplb_plugin.planning.deepseek.rebalance_experts"]
    return "\n".join(lines)


REFERENCE: Mapping[str, Callable[[], str]] = MappingProxyType(
    {
        "reference/settings.md": settings,
        SHIPPED: shipped_settings,
        "reference/commands.md": commands,
        "reference/metrics.md": metric_table,
        "reference/python.md": python,
    }
)
