"""What is wrong with settings: every refusal is one line with the key, the rule and a value that would do."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from eplb_plugin.errors import PluginError
from eplb_plugin.settings.config import PluginConfig, parse_config

KEYS = sorted(PluginConfig.model_fields)
PATHS = ("state_directory", "initial_placement")


def refusal(values: Any) -> str:
    with pytest.raises(PluginError) as caught:
        parse_config(values, "file.yaml")
    return str(caught.value)


RULES = {
    "window_size": "an integer in 1..1000000",
    "step_interval": "an integer in 2..100000000",
    "num_redundant_experts": "an integer in 0..100000",
    "sample_rows": "an integer in 256..65536",
    "balance_tolerance": "a number in 0.0..1.0",
    "budget.max_moved_slots": "an integer in 0..1000000",
    "forecast_windows": "an integer in 1..64",
    "exact.min_tokens": "an integer in 1..1073741824",
    "exact.tolerance": "a number in 0.0..1.0",
    "price.link_gbps": "a number in 0.001..1000000.0",
    "price.seconds_per_selection": "a number in 0.0..1.0",
    "topology.nodes": "an integer in 1..4096",
    "topology.ranks_per_node": "an integer in 1..4096",
    "topology.node_of_rank.1": "an integer >= 0",
}
# what a value is refused with: values, key, found, a word of the rule, the nearest valid value
OUT_OF_RANGE = [
    ({"policy": "afinity"}, "policy", "'afinity'", "one of deepseek, balanced, affinity", "affinity"),
    ({"policy": "deepsek"}, "policy", "'deepsek'", "one of deepseek, balanced, affinity", "deepseek"),
    ({"dispatch": "nearst"}, "dispatch", "'nearst'", "one of auto, hash, nearest, weighted, cover", "nearest"),
    (
        {"peo": {"method": "overlap"}},
        "peo.method",
        "'overlap'",
        "one of overlap-1, overlap-2, overlap-3, overlap-4",
        "overlap-4",
    ),
    ({"peo": {"num_rounds": 0}}, "peo.num_rounds", "0", "an integer in 1..1024", "1"),
    ({"window_size": 0}, "window_size", "0", RULES["window_size"], "1"),
    ({"window_size": 1_000_001}, "window_size", "1000001", RULES["window_size"], "1000000"),
    ({"window_size": 12.6}, "window_size", "12.6", RULES["window_size"], "13"),
    ({"window_size": "12"}, "window_size", "'12'", RULES["window_size"], "12"),
    ({"step_interval": 1}, "step_interval", "1", RULES["step_interval"], "2"),
    ({"step_interval": 10**9}, "step_interval", "1000000000", RULES["step_interval"], "100000000"),
    ({"step_interval": 2.5e2}, "step_interval", "250.0", RULES["step_interval"], "250"),
    ({"num_redundant_experts": -3}, "num_redundant_experts", "-3", RULES["num_redundant_experts"], "0"),
    ({"num_redundant_experts": 100_001}, "num_redundant_experts", "100001", RULES["num_redundant_experts"], "100000"),
    ({"num_redundant_experts": "8"}, "num_redundant_experts", "'8'", RULES["num_redundant_experts"], "8"),
    ({"sample_rows": 255}, "sample_rows", "255", RULES["sample_rows"], "256"),
    ({"sample_rows": 65_537}, "sample_rows", "65537", RULES["sample_rows"], "65536"),
    ({"sample_rows": 8e3}, "sample_rows", "8000.0", RULES["sample_rows"], "8000"),
    ({"balance_tolerance": -0.1}, "balance_tolerance", "-0.1", RULES["balance_tolerance"], "0.0"),
    ({"balance_tolerance": 1.5}, "balance_tolerance", "1.5", RULES["balance_tolerance"], "1.0"),
    ({"balance_tolerance": "0.05"}, "balance_tolerance", "'0.05'", RULES["balance_tolerance"], "0.05"),
    ({"budget": {"max_moved_slots": -1}}, "budget.max_moved_slots", "-1", RULES["budget.max_moved_slots"], "0"),
    (
        {"budget": {"max_moved_slots": 1e7}},
        "budget.max_moved_slots",
        "10000000.0",
        RULES["budget.max_moved_slots"],
        "1000000",
    ),
    (
        {"budget": {"max_moved_slots": 10**7}},
        "budget.max_moved_slots",
        "10000000",
        RULES["budget.max_moved_slots"],
        "1000000",
    ),
    ({"forecast_windows": 0}, "forecast_windows", "0", RULES["forecast_windows"], "1"),
    ({"exact": {"min_tokens": 0}}, "exact.min_tokens", "0", RULES["exact.min_tokens"], "1"),
    ({"exact": {"tolerance": 1.5}}, "exact.tolerance", "1.5", RULES["exact.tolerance"], "1.0"),
    (
        {"price": {"link_gbps": 0, "token_bytes": 1}},
        "price.link_gbps",
        "0",
        RULES["price.link_gbps"],
        "0.001",
    ),
    (
        {"price": {"link_gbps": 50, "seconds_per_selection": "2"}},
        "price.seconds_per_selection",
        "'2'",
        RULES["price.seconds_per_selection"],
        "1.0",
    ),
    ({"logging": {"level": "warn"}}, "logging.level", "'warn'", "one of debug, info, warning, error", "warning"),
    ({"logging": {"rebalances": 1}}, "logging.rebalances", "1", "true or false", "true"),
    ({"logging": {"rebalances": "no"}}, "logging.rebalances", "'no'", "true or false", "false"),
    ({"topology": {"nodes": 0}}, "topology.nodes", "0", RULES["topology.nodes"], "1"),
    ({"topology": {"nodes": 5000}}, "topology.nodes", "5000", RULES["topology.nodes"], "4096"),
    (
        {"topology": {"nodes": 2, "ranks_per_node": 0}},
        "topology.ranks_per_node",
        "0",
        RULES["topology.ranks_per_node"],
        "1",
    ),
    ({"topology": {"nodes": "2"}}, "topology.nodes", "'2'", RULES["topology.nodes"], "2"),
    ({"topology": {"node_of_rank": [0, -1]}}, "topology.node_of_rank.1", "-1", RULES["topology.node_of_rank.1"], "0"),
]


@pytest.mark.parametrize(("values", "key", "found", "rule", "nearest"), OUT_OF_RANGE)
def test_value_refused(values: Any, key: str, found: str, rule: str, nearest: str) -> None:
    """A refused value is named with its key, itself, the rule, and the nearest value that would be accepted."""
    message = refusal(values)
    assert message.startswith(f"file.yaml: {key}: found {found}, expected ")
    assert f", expected {rule}; " in message
    assert message.endswith(f"; fix: the nearest valid value is {nearest}")


@pytest.mark.parametrize(("values", "key", "found", "rule", "nearest"), OUT_OF_RANGE)
def test_nearest_value_is_valid(values: Any, key: str, found: str, rule: str, nearest: str) -> None:
    """The nearest value that a refusal proposes is accepted."""
    value = yaml.safe_load(nearest)
    section, _, rest = key.partition(".")
    if rest == "node_of_rank.1":
        parse_config({"topology": {"node_of_rank": [0, value]}}, "again")
    elif rest:
        parse_config({section: {**values[section], rest: value}}, "again")
    else:
        parse_config({section: value}, "again")


@pytest.mark.parametrize("key", [*KEYS, "topology.nodes", "topology.node_of_rank", "logging.level", "budget"])
@pytest.mark.parametrize("value", [[], [1], {"a": {"b": 1}}, True, "text", float("nan"), float("inf"), b"x"])
def test_wrong_type_refused(key: str, value: object) -> None:
    """Whatever the type of a value that does not fit, the message names the key and is one line."""
    section, _, rest = key.partition(".")
    values = {section: {rest: value}} if rest else {section: value}
    if values == {"topology": {"node_of_rank": [1]}} or (key in PATHS and value == "text"):
        return  # that one fits
    message = refusal(values)
    assert len(message.splitlines()) == 1
    assert message.startswith(f"file.yaml: {section}")
    assert "; fix: " in message
    assert "Config" not in message  # our class names mean nothing to a user


@pytest.mark.parametrize("value", ["off", 3, ["auto"], None, True])
def test_topology_is_auto_or_a_mapping(value: object) -> None:
    """Of the union's two branches the message says both, not what each of them would have liked."""
    rule, fix = "'auto' or a mapping with nodes", "the nearest valid value is auto"
    assert refusal({"topology": value}) == f"file.yaml: topology: found {value!r}, expected {rule}; fix: {fix}"


@pytest.mark.parametrize(
    ("values", "key", "close"),
    [
        ({"polcy": 1}, "polcy", "policy"),
        ({"windowsize": 1}, "windowsize", "window_size"),
        ({"budget": {"max_moved_slot": 1}}, "budget.max_moved_slot", "max_moved_slots"),
        ({"logging": {"lvl": "info"}}, "logging.lvl", "level"),
        ({"topology": {"node": 2}}, "topology.node", "nodes"),
        ({"topology": {"nodes": 2, "per_node": 4}}, "topology.per_node", "ranks_per_node"),
        ({"policy": "affinity", "x[0]": 1}, "x[0]", None),
        ({"": 1}, "''", None),
        ({"a\nb": 1}, "'a\\nb'", None),
    ],
)
def test_unknown_key_refused(values: Any, key: str, close: str | None) -> None:
    """An unknown key is refused, also in a section, with the keys that there are and the closest of them."""
    message = refusal(values)
    assert message.startswith(f"file.yaml: {key}: found unknown key, expected one of ")
    assert message.splitlines() == [message]
    if close:
        assert message.endswith(f"; fix: did you mean {close}?")


@pytest.mark.parametrize("key", ["path", "id", "eplb", "x"])
def test_a_key_like_no_other_gets_no_guess(key: str) -> None:
    """A proposal is made where it is likely, and nowhere else."""
    assert refusal({key: 1}).endswith("; fix: remove it")
    assert refusal({"policy": f"{key}?"}).endswith("; fix: see `eplb-plugin config schema`")


@pytest.mark.parametrize("key", [1, None, 2.5, True])
def test_key_that_is_no_text_refused(key: object) -> None:
    """YAML keys need not be text; ours are."""
    message = refusal({key: 1})
    assert ": found unknown key, expected one of balance_tolerance" in message
    assert len(message.splitlines()) == 1


def test_window_within_interval() -> None:
    """A window longer than the interval between rebalances is refused with the longest that fits."""
    message = refusal({"window_size": 100, "step_interval": 10})
    assert message == (
        "file.yaml: window_size: found 100, expected <= step_interval (10); fix: the nearest valid value is 10"
    )
    assert parse_config({"window_size": 10, "step_interval": 10}, "").window_size == 10


def test_a_bound_that_the_policy_cannot_keep_is_refused() -> None:
    """The vanilla algorithm solves afresh each time: a bound on moves would be ignored."""
    message = refusal({"policy": "deepseek", "budget": {"max_moved_slots": 4}})
    assert message.startswith("file.yaml: budget.max_moved_slots: found 4, expected no bound: policy deepseek")
    message = refusal({"policy": "deepseek", "budget": {"max_moved_slots_total": 0}})
    assert message.startswith("file.yaml: budget.max_moved_slots_total: found 0, expected no bound")


@pytest.mark.parametrize(
    ("price", "found"), [({}, "neither"), ({"link_gbps": 50}, "link_gbps"), ({"token_bytes": 1}, "token_bytes")]
)
def test_half_a_price_refused(price: dict[str, Any], found: str) -> None:
    """Bytes without the link's speed, or neither computing nor sending, cannot be compared with a move."""
    assert refusal({"price": price}).startswith(f"file.yaml: price: found {found}, expected link_gbps and one of ")


@pytest.mark.parametrize(
    ("topology", "words"),
    [
        ({}, "either nodes"),
        ({"nodes": 2, "node_of_rank": [0, 1]}, "either nodes"),
        ({"ranks_per_node": 4}, "either nodes"),
        ({"ranks_per_node": 1, "node_of_rank": [0, 1]}, "ranks_per_node and node_of_rank"),
        ({"node_of_rank": []}, "at least one"),
        ({"node_of_rank": [0, 0, 1]}, "found [1, 2] ranks per node, expected the same number"),
    ],
)
def test_topology_one_way(topology: dict[str, Any], words: str) -> None:
    """Nodes are declared in exactly one of the two ways."""
    message = refusal({"topology": topology})
    assert message.startswith("file.yaml: topology")
    assert words in message
    assert "; fix: " in message


@pytest.mark.parametrize("values", [3, "policy", ["policy"], True])
def test_not_a_mapping_refused(values: object) -> None:
    """A file that is not a mapping is refused by what it is."""
    assert refusal(values).startswith(f"file.yaml: found {type(values).__name__}, expected a mapping")
