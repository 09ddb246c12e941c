"""Which of SGLang's layouts the plugin serves, and how it counts in them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from eplb_plugin.engines.sglang.support import Layout, refuse_unsuited
from eplb_plugin.errors import PluginError
from eplb_plugin.settings.config import PluginConfig, parse_config

RESOLVED = Layout(
    enable_eplb=True, algorithm="affinity", tp_size=8, pp_size=1, ep_size=8, attention_dp=False, context_parallel=False,
    all_to_all="none", dispatch="dynamic", recorder_mode="stat", elastic=None, lora=False,
    weight_cache="off", local_control=False, together=False, prefill_graphs=False,
)  # fmt: skip
DEEPEP = replace(RESOLVED, all_to_all="deepep", dispatch="static")


@pytest.mark.parametrize(
    ("layout", "rule", "owners"),
    [
        (RESOLVED, "hash", 8),  # every rank routes every token, and all copies of an expert take turns
        (DEEPEP, "nearest", 1),
        (replace(DEEPEP, attention_dp=True), "nearest", 1),
        (replace(DEEPEP, dispatch="dynamic"), "hash", 1),
        (replace(DEEPEP, recorder_mode="stat_approx", elastic="none"), "nearest", 1),
    ],
)
def test_served(layout: Layout, rule: str, owners: int) -> None:
    """Our tables choose copies, or SGLang does by the rule that the plan then assumes; tokens are counted once."""
    for given in ("auto", "weighted", "cover", rule):
        refuse_unsuited(PluginConfig(dispatch=given), layout)
    assert (layout.rules, layout.owner_group_size) == (("weighted", "cover", rule), owners)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"enable_eplb": False}, "enable_eplb: found False"),
        ({"algorithm": "deepseek"}, "eplb_algorithm: found deepseek, expected affinity"),
        ({"elastic": "nixl"}, "elastic_ep_backend: found nixl"),
        ({"pp_size": 2}, "pp_size: found 2, expected 1"),
        ({"ep_size": 4}, "ep_size: found 4, expected 8"),
        ({"lora": True}, "lora: found True"),
        ({"weight_cache": "client"}, "weight_cache_mode: found client, expected off"),
        ({"local_control": True}, "local_control_broadcast: found True, expected requests that all ranks handle at"),
        ({"recorder_mode": "per_token"}, "recorder_mode: found per_token, expected stat or stat_approx"),
        ({"dispatch": "lp"}, "ep_dispatch_algorithm: found lp, expected static or dynamic"),
        ({"dispatch": "fake"}, "ep_dispatch_algorithm: found fake"),
        ({"all_to_all": "megamoe"}, "moe_a2a_backend: found megamoe"),
        ({"attention_dp": True}, "attention: found data parallel without an all-to-all"),
        ({"context_parallel": True}, "attention: found context parallel"),
    ],
)
def test_refused(changes: dict[str, Any], line: str) -> None:
    """With the reason and what to do."""
    with pytest.raises(PluginError) as caught:
        refuse_unsuited(PluginConfig(), replace(RESOLVED, **changes))
    assert str(caught.value).startswith(line)
    assert "; fix: " in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"dispatch": "nearest"}, "dispatch: found nearest, expected auto or one of weighted, cover, hash, which"),
        (
            {"exact": {}, "dispatch": "hash"},
            "dispatch: found hash, expected auto or one of weighted, cover for",
        ),
        ({"topology": {"nodes": 3}}, "topology: found nodes=3"),
        ({"topology": {"node_of_rank": [0, 1]}}, "topology.node_of_rank: found 2 ranks, expected 8"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], line: str) -> None:
    """Another rule than SGLang's, and nodes that are not those of the EP group."""
    with pytest.raises(PluginError, match=line):
        refuse_unsuited(parse_config(settings, ""), RESOLVED)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"together": True}, "batches: found two at once, expected one pass at a time for exact"),
        (
            {"prefill_graphs": True, "all_to_all": "deepep"},
            "graphs of prompts: found captured, expected none for",
        ),
        ({"prefill_graphs": True, "all_to_all": "deepep", "attention_dp": True}, "graphs of prompts: found captured, "),
    ],
)
def test_what_exact_does_not_fit(changes: dict[str, Any], line: str) -> None:
    """Passes that would exchange counts in an order of their own, and ranks that might not decide alike."""
    layout = replace(RESOLVED, **changes)
    refuse_unsuited(PluginConfig(), layout)
    with pytest.raises(PluginError, match=line):
        refuse_unsuited(parse_config({"exact": {}}, ""), layout)


@pytest.mark.parametrize("changes", [{"prefill_graphs": True}, {"prefill_graphs": None, "all_to_all": None}])
def test_exact_where_every_rank_routes_every_token(changes: dict[str, Any]) -> None:
    """Also with graphs of prompts, which all ranks replay alike; a launcher does not know yet."""
    for rule in ("auto", "weighted", "cover"):
        refuse_unsuited(parse_config({"exact": {}, "dispatch": rule}, ""), replace(RESOLVED, **changes))
