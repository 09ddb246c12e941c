"""The sections of the settings: topologies that fit the EP size, rounds that fit a rank, and one way to say a thing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from eplb_plugin.errors import PluginError
from eplb_plugin.settings.sections import SECTIONS, PeoConfig, PriceConfig, TopologyConfig


def nodes_of(values: Any, ep_size: int) -> list[int]:
    topology = TopologyConfig(**values).of_ranks(ep_size, 3)
    assert topology.slots_per_rank == 3
    assert topology.num_ranks == ep_size
    return topology.node_of_rank.tolist()


def test_topology_must_fit_the_ep_size() -> None:
    """Declared nodes that do not multiply to the EP size are refused with the nearest that do."""
    with pytest.raises(PluginError, match="topology: found nodes=3") as caught:
        nodes_of({"nodes": 3}, 8)
    assert "expected a product of 8 (the EP size); fix: nodes=2, ranks_per_node=4" in str(caught.value)
    with pytest.raises(PluginError, match="nodes=2 × ranks_per_node=8"):
        nodes_of({"nodes": 2, "ranks_per_node": 8}, 8)
    with pytest.raises(PluginError, match="found 3 ranks, expected 4"):
        nodes_of({"node_of_rank": [0, 1, 2]}, 4)


@given(st.integers(1, 64), st.integers(1, 64), st.none() | st.integers(1, 64))
def test_proposed_topology_fits(ep_size: int, nodes: int, per_node: int | None) -> None:
    """The topology that a refusal proposes is accepted, and every accepted one has `ep_size` ranks."""
    values = {"nodes": nodes, "ranks_per_node": per_node}
    try:
        assert np.bincount(nodes_of(values, ep_size)).tolist() == [ep_size // nodes] * nodes
    except PluginError as error:
        first, second = str(error).split("fix: nodes=")[1].split(" is the")[0].split(", ranks_per_node=")
        nodes_of({"nodes": int(first), "ranks_per_node": int(second)}, ep_size)


@pytest.mark.parametrize(
    ("section", "values", "words"),
    [
        (TopologyConfig, {}, "neither"),
        (TopologyConfig, {"ranks_per_node": 2}, "ranks_per_node"),
        (TopologyConfig, {"nodes": 2, "node_of_rank": [0, 1]}, "nodes and node_of_rank"),
        (TopologyConfig, {"node_of_rank": [0, 0, 0, 1]}, r"found \[1, 3\] ranks per node"),
        (PriceConfig, {"link_gbps": 1.0}, "link_gbps"),
        (PriceConfig, {"token_bytes": 1.0, "seconds_per_selection": 1e-6}, "token_bytes and seconds_per_selection"),
    ],
)
def test_a_section_says_one_whole_thing(section: Any, values: Any, words: str) -> None:
    """Two ways at once, half a way, or none are refused where they stand, before the EP size is known."""
    with pytest.raises(ValidationError, match=words):
        section(**values)


@pytest.mark.parametrize(
    ("rounds", "slots", "expected"), [(None, 32, 4), (4, 32, 4), (1, 7, 1), (5, 32, None), (64, 32, None)]
)
def test_rounds_divide_the_slots_of_a_rank(rounds: int | None, slots: int, expected: int | None) -> None:
    """About four where nothing is said; None where a rank cannot be split so."""
    assert PeoConfig(num_rounds=rounds).rounds(slots) == expected


@pytest.mark.parametrize("name", sorted(SECTIONS))
def test_every_setting_is_described(name: str) -> None:
    """In the JSON schema, for editors; and no section takes keys that it does not know, or may be changed."""
    section = SECTIONS[name]
    schema = section.model_json_schema()
    assert schema["description"]
    assert all(one["description"] for one in schema["properties"].values())
    assert schema["additionalProperties"] is False
    assert section.model_config["frozen"]
