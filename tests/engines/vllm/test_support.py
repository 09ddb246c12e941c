"""What of vLLM's configuration is refused; with vLLM's own configuration in `test_activation.py`."""

from __future__ import annotations

import pytest

from eplb_plugin import PluginError
from eplb_plugin.engines.vllm.support import DISPATCH, refuse_unsuited
from eplb_plugin.settings.config import PluginConfig


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
        refuse_unsuited(config, enable_eplb=enable_eplb, elastic=elastic)


def test_what_fits() -> None:
    """Every dispatch that vLLM can be made to follow; by default the one with weights."""
    for dispatch in ("auto", *DISPATCH):
        refuse_unsuited(PluginConfig(dispatch=dispatch), enable_eplb=True, elastic=False)
    assert PluginConfig().dispatch_among(DISPATCH) == "weighted"
