"""What users may rely on. A failure here means: a change of the public interface, to be made on purpose only."""

from __future__ import annotations

import inspect

import eplb_plugin
from eplb_plugin.planning.deepseek import rebalance_experts

NAMES = [
    "Placement",
    "Plan",
    "PlanOptions",
    "PluginError",
    "RoutingStatistics",
    "Topology",
    "forecast",
    "plan",
    "resplit",
    "route",
    "route_step",
]
PARAMETERS = {
    "Topology": ["num_nodes", "ranks_per_node", "slots_per_rank", "_nodes"],
    "Topology.from_nodes": ["node_of_rank", "slots_per_rank"],
    "RoutingStatistics": ["load", "coactivation", "sample", "num_tokens", "layer_ids", "parts", "left_out", "steps"],
    "RoutingStatistics.from_topk": ["topk_ids", "num_experts", "layer_ids", "steps"],
    "RoutingStatistics.merge": ["self", "other"],
    "RoutingStatistics.decay": ["self", "factor"],
    "RoutingStatistics.save": ["self", "path", "header"],
    "RoutingStatistics.read": ["path"],
    "RoutingStatistics.load": ["path"],
    "Placement": ["phy2log", "layer_ids"],
    "Placement.moves_from": ["self", "previous"],
    "Placement.save": ["self", "path", "header"],
    "Placement.export": ["self", "format", "path", "num_layers", "num_ranks"],
    "Placement.load": ["path", "expected"],
    "Plan": [
        "placement", "topology", "dispatch", "replica_weights", "seconds", "source_weights", "cover_weights",
        "resolved_layers", "skipped_layers", "less_even",
    ],
    "PlanOptions": [
        "effort", "balance_tolerance", "ingress_tolerance", "max_moved_slots", "max_moved_slots_total", "expert_bytes",
        "link_gbps", "token_bytes", "seconds_per_selection", "window_steps", "horizon_steps", "load_error",
        "peo_rounds", "exact",
    ],
    "forecast": ["history", "*pairs"],
    "plan": ["statistics", "topology", "*policy", "*previous", "*dispatch", "*num_groups", "*options"],
    "resplit": ["plan", "statistics"],
    "route": ["topk_ids", "source_rank", "plan", "layer", "rule", "*token_index"],
    "route_step": ["topk_ids", "source_rank", "plan", "layer", "*dispatch", "*tolerance"],
}  # fmt: skip
DEFAULTS = {
    "plan": {"policy": "affinity", "previous": None, "dispatch": "weighted", "num_groups": 1, "options": None},
    "route": {"rule": None, "token_index": None},
    "route_step": {"dispatch": None, "tolerance": 0.0},
    "PlanOptions": {
        "effort": "thorough",
        "balance_tolerance": 0.02,
        "max_moved_slots": None,
        "max_moved_slots_total": None,
        "expert_bytes": None,
        "load_error": 0.15,
        "peo_rounds": None,
        "exact": False,
    },
}


def found(path: str) -> inspect.Signature:
    thing = eplb_plugin
    for name in path.split("."):
        thing = getattr(thing, name)
    return inspect.signature(thing)


def test_names():
    assert eplb_plugin.__all__ == NAMES
    assert all(hasattr(eplb_plugin, name) for name in NAMES)


def test_parameters():
    def spelled(signature: inspect.Signature) -> list[str]:
        return ["*" * (p.kind is p.KEYWORD_ONLY) + p.name for p in signature.parameters.values()]

    assert {path: spelled(found(path)) for path in PARAMETERS} == PARAMETERS


def test_defaults():
    for path, defaults in DEFAULTS.items():
        parameters = found(path).parameters
        assert {name: parameters[name].default for name in defaults} == defaults


def test_deepseek_signature():
    names = ["weight", "num_replicas", "num_groups", "num_nodes", "num_gpus"]
    assert list(inspect.signature(rebalance_experts).parameters) == names


def test_unknown_names_are_attribute_errors():
    assert not hasattr(eplb_plugin, "no_such_name")
