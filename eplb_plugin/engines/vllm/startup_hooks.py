"""How a vLLM engine learns that it should use the plugin: pass-through wrappers, inert until a config is given.

Precedence: `--eplb-plugin-config FILE`, then `--additional-config '{"eplb_plugin": {…}}'`, then `EPLB_PLUGIN_CONFIG`.
The process that makes the engine's configuration (`vllm serve`, `LLM(...)`, `AsyncLLM`) reads and checks the settings
once and passes their content on in `additional_config`. So workers, also on other nodes and of Ray, which keeps most
variables to itself, need neither file nor variable. A worker decides in `init_device`, the first point at which it
knows its configuration, and the engine asks all of them afterwards.

No hook is on the engine's core: where Ray starts it (`--data-parallel-backend ray`), Ray has copied the methods of its
class before any plugin is loaded.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any

from ...errors import PluginError, mismatch, stop
from ...settings.config import KEY, PluginConfig, load_config, parse_config
from ..hooks import Hook
from ..settings import DISABLE, ENVIRONMENT, FLAG, add_flag, disabled, from_environment
from ..startup_agreement import INSTALL
from .support import refuse_unsuited


def _add_cli_args(original: Callable[..., Any], parser: Any) -> Any:
    parser = original(parser)
    add_flag(parser, needs="--enable-eplb")
    return parser


def _from_cli_args(original: Callable[..., Any], cls: Any, args: argparse.Namespace) -> Any:
    try:
        config = _requested(args)
    except PluginError as error:
        stop(error)
    _pass_on(config, args)  # into the namespace, so that server processes that get it instead of our hook see the same
    return original(cls, args)


def _create_engine_config(
    original: Callable[..., Any], self: Any, usage_context: Any = None, headless: Any = False
) -> Any:
    _pass_on(_requested(self), self)
    return original(self, usage_context, headless)


def _init_device(original: Callable[..., Any], self: Any) -> Any:
    config = configured(self.vllm_config.additional_config)
    if config is None:
        _refuse_alone()
        return original(self)
    from . import activation

    activation.activate(config, self.vllm_config)
    done = original(self)
    activation.confirm(self.vllm_config)
    return done


def _get_kv_cache_specs(original: Callable[..., Any], self: Any) -> Any:
    config = configured(self.vllm_config.additional_config)
    if config is not None:
        from .presence import refuse_inactive

        refuse_inactive(self, config.logging.level)
    return original(self)


def _sleep(original: Callable[..., Any], self: Any, level: int = 1, mode: Any = "abort") -> Any:
    if level >= 2 and configured(self.vllm_config.additional_config) is not None:
        fix = "sleep at level 1, or remove the plugin's settings"
        expected = "level 1: level 2 discards experts, and weights load again where they lay at the start"
        raise mismatch("sleep level", found=level, expected=expected, fix=fix)
    return original(self, level, mode)


def configured(additional_config: Any) -> PluginConfig | None:
    """The settings in vLLM's additional config; None if there are none."""
    if isinstance(additional_config, str) and KEY in additional_config:
        raise _no_object(additional_config)
    if isinstance(additional_config, dict) and KEY in additional_config:
        return parse_config(additional_config[KEY], f"--additional-config {KEY}")
    return None


def _pass_on(config: PluginConfig | None, options: Any) -> None:
    """options: a command line's namespace or vLLM's EngineArgs."""
    if config is not None:
        options.additional_config = {**(options.additional_config or {}), KEY: Content(config.model_dump(mode="json"))}


class Content(dict[str, Any]):
    """Settings as they travel in vLLM's configuration. They arrive only in a process in which the plugin works: an
    engine of Ray's without it would hold them, ask nobody and be vanilla in silence."""

    def __reduce__(self) -> Any:
        return _arrived, (dict(self),)


def _arrived(content: dict[str, Any]) -> Content:
    """Raises PluginError where the plugin was told to do nothing. Without the package this is not even found."""
    if disabled():
        found = f"{DISABLE} in a process of the engine"
        raise mismatch("plugin", found=found, expected="active in every process", fix=INSTALL)
    return Content(content)


def _refuse_alone() -> None:
    """A worker's own environment asks for the plugin and the engine's configuration does not."""
    if os.environ.get(ENVIRONMENT):
        expected = "the same where the engine is started"
        fix = f"set {ENVIRONMENT} there too, or unset it here"
        raise mismatch(ENVIRONMENT, found="settings in a worker's environment", expected=expected, fix=fix)


def _requested(args: Any) -> PluginConfig | None:
    """Settings by precedence, checked as far as the options allow; None if the plugin is not asked for."""
    path, additional = getattr(args, "eplb_plugin_config", None), getattr(args, "additional_config", None)
    config = load_config(path) if path else configured(additional) or from_environment()
    if config is None:
        return None
    if additional is not None and not isinstance(additional, dict):
        raise _no_object(additional)
    eplb, elastic = (bool(getattr(args, name, False)) for name in ("enable_eplb", "enable_elastic_ep"))
    refuse_unsuited(
        config,
        enable_eplb=eplb,
        elastic=elastic,
        micro_batches=bool(getattr(args, "enable_dbo", False)) or int(getattr(args, "ubatch_size", None) or 0) > 1,
        context_parallel=int(getattr(args, "prefill_context_parallel_size", None) or 1) > 1,
    )
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


STARTUP_HOOKS = (
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
        "vllm.engine.arg_utils:EngineArgs.create_engine_config",
        "around",
        "the same for engines without a command line, e.g. LLM(...)",
        "(self, usage_context=None, headless=False)",
        _create_engine_config,
    ),
    Hook(
        "vllm.v1.worker.worker_base:WorkerWrapperBase.init_device",
        "around",
        "a worker knows its configuration from here on, and its model is not loaded yet",
        "(self)",
        _init_device,
    ),
    Hook(
        "vllm.v1.executor.abstract:Executor.get_kv_cache_specs",
        "around",
        "all workers of the engine are there: the plugin must be active in each of them",
        "(self)",
        _get_kv_cache_specs,
    ),
    *(
        Hook(
            f"{engine}.sleep",
            "around",
            "refuses the level that would lose the experts' places, before requests are ended for it",
            "(self, level=1, mode='abort')",
            _sleep,
        )
        for engine in ("vllm.v1.engine.async_llm:AsyncLLM", "vllm.v1.engine.llm_engine:LLMEngine")
    ),
)
