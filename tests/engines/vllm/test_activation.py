"""Turning the plugin on in a worker: refused before anything is touched, or hooked and configured."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.config.parallel import EPLBConfig
from vllm.distributed.eplb.eplb_state import EplbState

from eplb_plugin.config import PluginConfig, parse_config
from eplb_plugin.engines import hooks
from eplb_plugin.engines.releases import VLLM, Engine
from eplb_plugin.engines.vllm import state
from eplb_plugin.engines.vllm.activation import activate
from eplb_plugin.engines.vllm.runtime import RUNTIME
from eplb_plugin.errors import PluginError


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    """Hooks, settings and logger as they were."""
    logger = logging.getLogger("eplb_plugin")
    before = logger.handlers, logger.propagate, logger.level
    yield
    hooks.remove(RUNTIME)
    state._active = None
    logger.handlers, logger.propagate = before[:2]
    logger.setLevel(before[2])


def engine(experts: int = 60, tp: int = 2, dp: int = 2, redundant: int = 4, **changes: Any) -> SimpleNamespace:
    parallel = {
        "enable_eplb": True,
        "enable_elastic_ep": False,
        "tensor_parallel_size": tp,
        "data_parallel_size": dp,
        "prefill_context_parallel_size": 1,
        "worker_cls": "vllm.v1.worker.gpu_worker.Worker",
        "rank": 0,
        "data_parallel_rank": 0,
        "eplb_config": EPLBConfig(num_redundant_experts=redundant),
    }
    return SimpleNamespace(
        parallel_config=SimpleNamespace(**{**parallel, **changes}),
        model_config=SimpleNamespace(get_num_experts=lambda: experts),
    )


def applied() -> list[bool]:
    return [status.applied for status in hooks.check(RUNTIME)]


def test_activate() -> None:
    """Every runtime hook is in force, and the window and interval of the settings are the engine's."""
    config, vllm_config = PluginConfig(window_size=10, step_interval=20), engine()
    activate(config, vllm_config)
    assert all(applied())
    eplb = vllm_config.parallel_config.eplb_config
    assert (eplb.window_size, eplb.step_interval) == (10, 20)
    assert state.get_active() == state.Active(config, vllm_config)
    activate(config, vllm_config)  # a second worker in the process
    assert all(applied())


def test_engine_settings_stay_where_ours_are_left_out() -> None:
    """window_size and step_interval left out: the engine's own."""
    vllm_config = engine()
    before = EPLBConfig(num_redundant_experts=4)
    activate(PluginConfig(), vllm_config)
    assert vllm_config.parallel_config.eplb_config == before


@pytest.mark.parametrize(
    ("values", "changes", "line"),
    [
        ({}, {"enable_eplb": False}, "enable_eplb: found False"),
        ({}, {"enable_elastic_ep": True}, "enable_elastic_ep: found True"),
        ({}, {"redundant": 5}, "num_redundant_experts: found 60 + 5 slots on 4 ranks"),
        (
            {"num_redundant_experts": 8},
            {},
            "num_redundant_experts: found 4 in the engine, expected 8; fix: start the server",
        ),
        ({"topology": {"nodes": 3}}, {}, "topology: found nodes=3"),
        ({"topology": {"node_of_rank": [0, 1]}}, {}, "topology.node_of_rank: found 2 ranks, expected 4"),
    ],
)
def test_refused_before_anything_is_touched(values: Any, changes: dict[str, Any], line: str) -> None:
    """What does not fit is refused with nothing hooked and the engine's settings unchanged."""
    vllm_config = engine(**changes)
    before = EPLBConfig(num_redundant_experts=vllm_config.parallel_config.eplb_config.num_redundant_experts)
    config = parse_config({**values, "window_size": 10, "step_interval": 20}, "")
    with pytest.raises(PluginError) as caught:
        activate(config, vllm_config)
    assert str(caught.value).startswith(line)
    assert "; fix: " in str(caught.value)
    assert not any(applied())
    assert state._active is None
    assert vllm_config.parallel_config.eplb_config == before


def test_moved_engine_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine whose internals moved is refused as a whole: no hook of the table is applied."""

    def rearrange(self: Any) -> None: ...

    monkeypatch.setattr(EplbState, "rearrange", rearrange)
    with pytest.raises(PluginError, match=r"EplbState\.rearrange: found \(self\), expected \(self, is_profile=False"):
        activate(PluginConfig(), engine())
    assert not any(applied())


@pytest.mark.parametrize(("version", "rank"), [(VLLM.tested, 0), ("0.33.1", 0), ("0.33.1", 1)])
def test_untested_version_warns(monkeypatch: pytest.MonkeyPatch, version: str, rank: int) -> None:
    """A version that was not tested but whose signatures all match starts with one warning, of one rank."""
    monkeypatch.setattr(Engine, "installed", version)
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    monkeypatch.setattr(logging.getLogger("vllm"), "handlers", [handler])
    activate(PluginConfig(), engine(data_parallel_rank=rank))
    expected = f"vLLM {version} is untested (tested: {VLLM.tested}); all hooked signatures are checked"
    assert lines == ([] if version == VLLM.tested or rank else [expected])


def test_tested_version_is_the_installed_one() -> None:
    """These tests run against the version that the plugin says it was tested with."""
    assert VLLM.installed == VLLM.tested


@pytest.mark.parametrize("level", ["debug", "warning"])
def test_log_level(level: str) -> None:
    """Our lines go where vLLM's go, from the level of the settings on."""
    activate(parse_config({"logging": {"level": level}}, ""), engine())
    logger = logging.getLogger("eplb_plugin")
    assert logger.level == getattr(logging, level.upper())
    assert logger.handlers == logging.getLogger("vllm").handlers


def test_another_rule_than_the_engines_is_refused() -> None:
    """A plan made for a replica choice that vLLM does not make would be balanced for nobody."""
    with pytest.raises(PluginError, match=r"found nearest, expected auto or one of weighted, hash"):
        activate(PluginConfig(dispatch="nearest"), engine())
