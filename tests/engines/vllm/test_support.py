"""What of vLLM's configuration is refused; with vLLM's own configuration in `test_activation.py`."""

from __future__ import annotations

import pytest

from eplb_plugin import PluginError
from eplb_plugin.engines.vllm.support import DISPATCH, refuse_unsuited
from eplb_plugin.settings.config import PluginConfig
from eplb_plugin.settings.sections import ExactConfig


@pytest.mark.parametrize(
    ("dispatch", "enable_eplb", "elastic", "line"),
    [
        ("auto", False, False, "enable_eplb: found False"),
        ("auto", True, True, "enable_elastic_ep: found True"),
        ("nearest", True, False, "dispatch: found nearest"),
    ],
)
def test_what_does_not_fit_is_named(dispatch: str, enable_eplb: bool, elastic: bool, line: str) -> None:
    """In one line, with the flag to change."""
    config = PluginConfig(dispatch=dispatch)
    with pytest.raises(PluginError, match=line):
        refuse_unsuited(config, enable_eplb=enable_eplb, elastic=elastic, micro_batches=False)


def test_exact_needs_whole_batches() -> None:
    """Micro-batches run on streams of their own, and ranks would exchange counts in different orders."""
    with pytest.raises(PluginError, match=r"micro-batches: found on, expected whole batches .*; fix: remove --enable-"):
        refuse_unsuited(PluginConfig(exact=ExactConfig()), enable_eplb=True, elastic=False, micro_batches=True)


def test_what_fits() -> None:
    """Every dispatch that vLLM can be made to follow; by default the one with weights."""
    for dispatch in ("auto", *DISPATCH):
        config = PluginConfig(dispatch=dispatch)
        refuse_unsuited(config, enable_eplb=True, elastic=False, micro_batches=True)
        refuse_unsuited(
            config.model_copy(update={"exact": ExactConfig()}), enable_eplb=True, elastic=False, micro_batches=False
        )
    assert PluginConfig().dispatch_among(DISPATCH) == "weighted"
