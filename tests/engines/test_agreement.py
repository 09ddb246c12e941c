"""Settings and hosts over several processes."""

from __future__ import annotations

import pytest
import torch.distributed as dist

from eplb_plugin.config import PluginConfig
from eplb_plugin.engines.agreement import agree
from eplb_plugin.errors import PluginError
from processes import run_ranks

ONE, OTHER = PluginConfig(policy="balanced"), PluginConfig(policy="deepseek")


def outcome(given: list[PluginConfig | None]) -> tuple[PluginConfig | None, int, str]:
    try:
        config, hosts = agree(given[dist.get_rank()], dist.group.WORLD)
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
