"""How a vLLM server learns that it should use the plugin: pass-through wrappers, inert until a config is given.

Precedence: `--eplb-plugin-config FILE`, then `--additional-config '{"eplb_plugin": {…}}'`, then `EPLB_PLUGIN_CONFIG`.
The launcher reads and checks the file once and passes its content on in `additional_config`, so that workers, also on
other nodes, need no copy. A worker decides in `init_device`, the first point at which it knows its configuration.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

from ...config import PluginConfig, load_config, parse_config
from ...errors import PluginError, mismatch
from ...plan_types import Dispatch
from ..hooks import Hook
from ..settings import ENVIRONMENT, FLAG, add_flag, from_environment

KEY = "eplb_plugin"
DISPATCH: tuple[Dispatch, ...] = ("weighted", "hash", "cover")  # the first is the default


def _add_cli_args(original: Callable[..., Any], parser: Any) -> Any:
    parser = original(parser)
    add_flag(parser, needs="--enable-eplb")
    return parser


def _from_cli_args(original: Callable[..., Any], cls: Any, args: argparse.Namespace) -> Any:
    try:
        config = _requested(args)
    except PluginError as error:
        print(f"eplb-plugin: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    if config is not None:
        # into the namespace, so that server processes that get it instead of our hook see the same
        args.additional_config = {**(args.additional_config or {}), KEY: config.model_dump(mode="json")}
    return original(cls, args)


def _init_device(original: Callable[..., Any], self: Any) -> Any:
    config = configured(self.vllm_config.additional_config)
    if config is not None:
        from .activation import activate

        activate(config, self.vllm_config)
    return original(self)


def configured(additional_config: Any) -> PluginConfig | None:
    """The settings given through vLLM's additional config, or else through the environment; None if neither."""
    if isinstance(additional_config, str) and KEY in additional_config:
        raise _no_object(additional_config)
    if isinstance(additional_config, dict) and KEY in additional_config:
        return parse_config(additional_config[KEY], f"--additional-config {KEY}")
    return from_environment()


def _requested(args: argparse.Namespace) -> PluginConfig | None:
    """Settings by precedence, checked as far as the command line allows; None if the plugin is not asked for."""
    path, additional = getattr(args, "eplb_plugin_config", None), getattr(args, "additional_config", None)
    config = load_config(path) if path else configured(additional)
    if config is None:
        return None
    if additional is not None and not isinstance(additional, dict):
        raise _no_object(additional)
    eplb, elastic = (bool(getattr(args, name, False)) for name in ("enable_eplb", "enable_elastic_ep"))
    refuse_unsuited(config, enable_eplb=eplb, elastic=elastic)
    sizes = ("tensor_parallel_size", "data_parallel_size", "prefill_context_parallel_size")
    ep_size = 1
    for name in sizes:
        ep_size *= int(getattr(args, name, None) or 1)
    config.topology_for(ep_size, slots_per_rank=1, hosts=["not known yet"] * ep_size)
    return config


def _no_object(found: object) -> PluginError:
    """vLLM passes what is no JSON object on as text, without a word."""
    fix = f"""correct it, e.g. '{{"{KEY}": {{"policy": "affinity"}}}}'"""
    return mismatch("--additional-config", found=repr(found)[:80], expected="a JSON object", fix=fix)


def refuse_unsuited(config: PluginConfig, *, enable_eplb: bool, elastic: bool) -> None:
    """Raises PluginError where the engine and the settings do not fit together."""
    config.dispatch_among(DISPATCH)
    if not enable_eplb:
        fix = f"add --enable-eplb, or remove {FLAG} / unset {ENVIRONMENT}"
        raise mismatch("enable_eplb", found=False, expected="--enable-eplb, which the plugin builds on", fix=fix)
    if elastic:
        fix = "remove --enable-elastic-ep, or the plugin's settings"
        raise mismatch("enable_elastic_ep", found=True, expected="a fixed EP group", fix=fix)


ENTRANCE = (
    Hook(
        "vllm.engine.arg_utils:EngineArgs.add_cli_args",
        "around",
        f"adds the server flag {FLAG}",
        "(parser)",
        _add_cli_args,
    ),
    Hook(
        "vllm.engine.arg_utils:EngineArgs.from_cli_args",
        "around",
        "reads and checks the settings in the launcher and passes their content on to the workers",
        "(cls, args)",
        _from_cli_args,
    ),
    Hook(
        "vllm.v1.worker.worker_base:WorkerWrapperBase.init_device",
        "around",
        "a worker knows its configuration from here on, and its model is not loaded yet",
        "(self)",
        _init_device,
    ),
)
