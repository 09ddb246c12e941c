"""What of vLLM's configuration decides whether the plugin fits, and what is refused, with the reason."""

from __future__ import annotations

from typing import Any

from ...errors import mismatch
from ...plan_types import Dispatch
from ...settings.config import PluginConfig
from ..settings import ENVIRONMENT, FLAG

DISPATCH: tuple[Dispatch, ...] = ("weighted", "hash", "cover")  # the first is the default


def refuse_unsuited(
    config: PluginConfig, *, enable_eplb: bool, elastic: bool, micro_batches: bool, context_parallel: bool
) -> None:
    """Raises PluginError where the engine and the settings do not fit together."""
    config.dispatch_among(DISPATCH)
    if not enable_eplb:
        fix = f"add --enable-eplb, or remove {FLAG} / unset {ENVIRONMENT}"
        raise mismatch("enable_eplb", found=False, expected="--enable-eplb, which the plugin builds on", fix=fix)
    if elastic:
        fix = "remove --enable-elastic-ep, or the plugin's settings"
        raise mismatch("enable_elastic_ep", found=True, expected="a fixed EP group", fix=fix)
    if config.exact is not None and context_parallel:
        expected = "1 for exact: ranks would not know each other's number of tokens"
        raise mismatch("prefill_context_parallel_size", found="more", expected=expected, fix="exact: null")
    if config.exact is not None and micro_batches:
        expected = "whole batches for exact: micro-batches would exchange their counts in an order of their own"
        raise mismatch("micro-batches", found="on", expected=expected, fix="remove --enable-dbo, or exact: null")


def refuse_moving_memory(vllm_config: Any) -> None:
    """Raises PluginError where vLLM was told to do to the experts' memory what a placement does not survive."""
    if vllm_config.weight_transfer_config is not None:
        expected = "none: vLLM writes experts where they lay at the start, and they move"
        raise mismatch("weight_transfer_config", found="one", expected=expected, fix="remove the plugin's settings")
    communicator = vllm_config.parallel_config.eplb_config.communicator
    if vllm_config.model_config.enable_sleep_mode and communicator == "nixl":
        expected = "another communicator: NIXL keeps the pages that sleep mode gives away"
        fix = "add --eplb-config.communicator torch_gloo, or remove --enable-sleep-mode"
        raise mismatch("enable_sleep_mode", found="True with communicator nixl", expected=expected, fix=fix)
