"""How an SGLang server learns that it should use the plugin: pass-through wrappers, inert until it is asked for.

It is asked for by `--eplb-algorithm affinity` together with settings: `--eplb-plugin-config FILE`, or else
`EPLB_PLUGIN_CONFIG` (also for `Engine(...)`, which has no command line). A scheduler decides when it makes its first
expert placement: its configuration and process groups are there, and its model is not loaded yet.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any

from ...errors import PluginError, mismatch, stop
from ...settings.config import load_config
from .. import hooks
from ..hooks import Hook
from ..settings import ENVIRONMENT, FLAG, add_flag, from_environment, to_environment
from .support import AFFINITY, Layout, refuse_unsuited


def _add_cli_args(original: Callable[..., Any], parser: Any) -> Any:
    original(parser)
    add_flag(parser, needs=f"--enable-eplb --eplb-algorithm {AFFINITY}")


def _from_cli_args(original: Callable[..., Any], cls: Any, args: argparse.Namespace) -> Any:
    try:
        _read_settings(args)
    except PluginError as error:
        stop(error)
    return original(cls, args)


def _read_settings(args: argparse.Namespace) -> None:
    """Check what the command line asks for, as far as it allows, and leave the settings to the schedulers."""
    path = getattr(args, "eplb_plugin_config", None)
    config = load_config(path) if path else from_environment()
    if config is None and getattr(args, "eplb_algorithm", None) != AFFINITY:
        return  # tools of SGLang's come here with few of its arguments
    refuse_unsuited(config, Layout.requested(args))
    if config is not None:
        to_environment(config)
    elif args.node_rank == 0:  # another node may wait for the settings of this one
        expected = f"settings of the plugin, which {AFFINITY} means"
        raise mismatch("--eplb-algorithm", found=f"{AFFINITY} alone", expected=expected, fix=f"add {FLAG} FILE")
    hooks.verify(STARTUP_HOOKS)


def _compute_initial_expert_location_metadata(original: Callable[..., Any], model_config: Any, moe_ep_rank: int) -> Any:
    from sglang.srt.eplb.expert_location import ExpertLocationMetadata
    from sglang.srt.runtime_context import get_exec

    if os.environ.get(ENVIRONMENT) or get_exec().moe.eplb_algorithm == AFFINITY:
        from .activation import activate

        try:
            hooks.verify(STARTUP_HOOKS)  # SGLang only logs those that it could not apply
            rows = activate(model_config)
        except PluginError as error:
            stop(error)
        if rows is not None:
            return ExpertLocationMetadata.init_by_mapping(model_config, rows, moe_ep_rank=moe_ep_rank)
    return original(model_config, moe_ep_rank)


STARTUP_HOOKS = (
    Hook(
        "sglang.srt.server_args:ServerArgs.add_cli_args",
        "around",
        f"adds the server flag {FLAG}",
        "(parser)",
        _add_cli_args,
    ),
    Hook(
        "sglang.srt.server_args:ServerArgs.from_cli_args",
        "around",
        "reads and checks the settings in the launcher and passes their content on to the schedulers",
        "(cls, args)",
        _from_cli_args,
    ),
    Hook(
        "sglang.srt.eplb.expert_location:compute_initial_expert_location_metadata",
        "around",
        "a scheduler knows its configuration and its groups from here on, and its model is not loaded yet",
        "(model_config, moe_ep_rank)",
        _compute_initial_expert_location_metadata,
    ),
)
