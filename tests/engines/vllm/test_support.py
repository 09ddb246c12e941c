"""What of vLLM's configuration is refused; with vLLM's own configuration in `test_activation.py`."""

from __future__ import annotations

import pytest

from eplb_plugin import PluginError
from eplb_plugin.engines.vllm.support import DISPATCH, refuse_unsuited
from eplb_plugin.settings.config import PluginConfig
from eplb_plugin.settings.sections import ExactConfig

WHOLE = {"micro_batches": False, "context_parallel": False}


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
        refuse_unsuited(config, enable_eplb=enable_eplb, elastic=elastic, **WHOLE)


@pytest.mark.parametrize(
    ("parts", "line"),
    [
        ({"micro_batches": True}, "micro-batches: found on, expected whole batches .*; fix: remove --enable-dbo"),
        ({"context_parallel": True}, "prefill_context_parallel_size: found more, expected 1 for exact"),
    ],
)
def test_exact_needs_whole_batches(parts: dict[str, bool], line: str) -> None:
    """Micro-batches exchange counts in an order of their own; of parts of prompts no rank knows the others' sizes."""
    with pytest.raises(PluginError, match=line):
        refuse_unsuited(PluginConfig(exact=ExactConfig()), enable_eplb=True, elastic=False, **(WHOLE | parts))


def test_what_fits() -> None:
    """Every dispatch that vLLM can be made to follow, with `exact` too; by default the one with weights."""
    for dispatch in ("auto", *DISPATCH):
        config = PluginConfig(dispatch=dispatch)
        refuse_unsuited(config, enable_eplb=True, elastic=False, micro_batches=True, context_parallel=True)
        even = config.model_copy(update={"exact": ExactConfig()})
        refuse_unsuited(even, enable_eplb=True, elastic=False, **WHOLE)
    assert PluginConfig().dispatch_among(DISPATCH) == "weighted"
