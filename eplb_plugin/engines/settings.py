"""How a server is given the plugin's settings; the same words in every engine.

One environment variable names a YAML file or holds the settings themselves as JSON: a launcher reads and checks its
file once and leaves the content to the processes that it starts.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import PluginError, mismatch
from ..settings.config import PluginConfig, load_config, parse_config

FLAG = "--eplb-plugin-config"
ENVIRONMENT = "EPLB_PLUGIN_CONFIG"
DISABLE = "EPLB_PLUGIN_DISABLE"
SIMULATION = "VLLM_MOE_ROUTING_SIMULATION_STRATEGY"  # vLLM's own
REPLAY = "EPLB_PLUGIN_REPLAY"  # SGLang's routing simulator has no setting for it


def disabled() -> bool:
    """Whether the plugin was told to touch nothing at all."""
    return os.environ.get(DISABLE, "0") not in ("", "0")


def named_values(text: str, kinds: Mapping[str, Callable[[str], Any]], setting: str, words: str) -> dict[str, Any]:
    """Of `name=value,name=value`; kinds: what makes a value of its text; words: what is expected, for the refusal."""
    given = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        try:
            given[name] = kinds[name](value)
        except (KeyError, ValueError):
            raise mismatch(setting, found=part, expected=words, fix="correct that part") from None
    return given


def add_flag(parser: argparse.ArgumentParser, needs: str) -> None:
    parser.add_argument_group("eplb_plugin", "Affinity-aware expert placement").add_argument(
        FLAG, metavar="FILE", default=None, help=f"YAML settings of eplb_plugin; needs {needs}."
    )


def from_environment() -> PluginConfig | None:
    """Settings that the environment names or holds; None if it does neither. Raises PluginError if they are bad."""
    given = os.environ.get(ENVIRONMENT)
    if not given:
        return None
    if not given.lstrip().startswith("{"):
        return load_config(given)
    try:
        values = json.loads(given)
    except ValueError as error:
        raise PluginError(f"{ENVIRONMENT}: not valid JSON ({error}); fix: name a YAML file") from None
    return parse_config(values, ENVIRONMENT)


def to_environment(config: PluginConfig) -> None:
    """Leave the content to the processes that this one starts."""
    os.environ[ENVIRONMENT] = config.model_dump_json()
