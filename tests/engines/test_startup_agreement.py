"""Settings and hosts over several processes."""

from __future__ import annotations

import pytest
import torch.distributed as dist

from eplb_plugin.engines.startup_agreement import agree_on_settings, all_present
from eplb_plugin.errors import PluginError
from eplb_plugin.settings.config import PluginConfig
from processes import run_ranks

ONE, OTHER = PluginConfig(policy="balanced"), PluginConfig(policy="deepseek")


def outcome(given: list[PluginConfig | None]) -> tuple[PluginConfig | None, int, str]:
    try:
        config, hosts = agree_on_settings(given[dist.get_rank()], dist.group.WORLD)
    except PluginError as error:
        return None, 0, str(error)
    return config, len(hosts), ""


@pytest.mark.parametrize("given", [[ONE, ONE], [ONE, None], [None, ONE, None]])
def test_ranks_without_settings_take_those_of_the_others(given: list[PluginConfig | None]) -> None:
    """One node with the settings is enough."""
    assert run_ranks(len(given), outcome, given) == [(ONE, len(given), "")] * len(given)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ([ONE, OTHER], "settings: found digests ["),
        ([ONE, None, OTHER], "settings: found digests ["),
        ([None, None], "settings: found none, expected those of at least one rank; fix: add --eplb-plugin-config"),
    ],
)
def test_settings_that_differ_or_are_missing_are_refused(given: list[PluginConfig | None], line: str) -> None:
    """On every rank, so that none waits for the others."""
    for config, _, message in run_ranks(len(given), outcome, given):
        assert config is None
        assert message.startswith(line)
        assert "; fix: " in message


def met(absent: int | None) -> str:
    if dist.get_rank() == absent:
        return ""
    try:
        all_present(dist.group.WORLD, seconds=1.0)
    except PluginError as error:
        return str(error)
    return "all"


def test_all_ranks_meet() -> None:
    """Nothing is said where every rank has the plugin."""
    assert run_ranks(3, met, None) == ["all"] * 3


@pytest.mark.parametrize("absent", [0, 1])
def test_a_rank_without_the_plugin_is_missed(absent: int) -> None:
    """Every other rank names it after the deadline, in one line."""
    lines = run_ranks(3, met, absent)
    assert lines.pop(absent) == ""
    fix = "install eplb-plugin on every node; unset EPLB_PLUGIN_DISABLE there, and let VLLM_PLUGINS name eplb_plugin"
    line = f"plugin: found not active on ranks [{absent}] of 3, expected active on every rank; fix: {fix}"
    assert lines == [line, line]
