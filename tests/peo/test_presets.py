"""Figures of GPUs and models: possible ones, and those that others publish."""

from __future__ import annotations

from dataclasses import replace

import pytest

from eplb_plugin import PluginError
from eplb_plugin.peo.presets import CLAIMS, HARDWARE, MODELS


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"link_gbs": 0.0}, "hardware.link_gbs: found 0.0"),
        ({"hbm_gbs": float("nan")}, "hardware.hbm_gbs: found nan"),
        ({"num_sms": 1}, "hardware.num_sms: found 1"),
    ],
)
def test_hardware_that_cannot_be_is_refused(change: dict[str, float], words: str):
    with pytest.raises(PluginError) as error:
        replace(HARDWARE["H20"], **change)  # type: ignore[arg-type]
    assert words in str(error.value)


def test_names_are_those_of_the_entries():
    """Of GPUs and models; a claim names models that there are."""
    for table in (HARDWARE, MODELS):
        assert {name: one.name for name, one in table.items()} == {name: name for name in table}
    assert {name for claim in CLAIMS for name in claim.models} <= set(MODELS)
