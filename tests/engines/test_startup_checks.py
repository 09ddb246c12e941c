"""What is checked before a model is loaded, whatever the engine."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplb_plugin.engines.startup_checks import slots_for
from eplb_plugin.errors import PluginError
from eplb_plugin.settings.config import PluginConfig

FLAG = "--redundant"


def test_slots_for() -> None:
    """Slots per rank are (experts + redundant) / ranks."""
    assert slots_for(256, 32, 32, PluginConfig(), FLAG) == 9
    assert slots_for(8, 0, 1, PluginConfig(num_redundant_experts=0), FLAG) == 8


@pytest.mark.parametrize(
    ("experts", "redundant", "ranks", "near"),
    [(60, 5, 4, "4 or 8"), (60, 1, 8, "4"), (256, 3, 32, "0 or 32"), (7, 0, 2, "1")],
)
def test_slots_name_the_nearest_counts(experts: int, redundant: int, ranks: int, near: str) -> None:
    """Slots that do not divide are refused with the redundant counts on both sides that would."""
    with pytest.raises(PluginError) as caught:
        slots_for(experts, redundant, ranks, PluginConfig(), FLAG)
    assert str(caught.value) == (
        f"num_redundant_experts: found {experts} + {redundant} slots on {ranks} ranks, "
        f"expected the same number of slots on every rank; fix: {FLAG} {near}"
    )


@given(st.integers(1, 512), st.integers(0, 128), st.integers(1, 64))
def test_proposed_counts_divide(experts: int, redundant: int, ranks: int) -> None:
    """Every redundant count that a refusal proposes is accepted, and none between them is."""
    try:
        assert slots_for(experts, redundant, ranks, PluginConfig(), FLAG) * ranks == experts + redundant
    except PluginError as error:
        proposed = [int(word) for word in str(error).split(f"{FLAG} ")[-1].split(" or ")]
        for count in proposed:
            slots_for(experts, count, ranks, PluginConfig(), FLAG)
        assert proposed[-1] - redundant < ranks
        assert redundant - proposed[0] < ranks


def test_another_number_than_the_settings_is_refused() -> None:
    """The settings may say how many redundant experts the engine must have been started with."""
    with pytest.raises(PluginError, match="found 4 in the engine, expected 8; fix: start the server with --redu"):
        slots_for(60, 4, 4, PluginConfig(num_redundant_experts=8), FLAG)
