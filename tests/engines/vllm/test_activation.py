"""Turning the plugin on in a worker: refused before anything is touched, or hooked and configured."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.config import VllmConfig, WeightTransferConfig
from vllm.config.parallel import EPLBConfig
from vllm.distributed.eplb.eplb_state import EplbState

from engines.vllm.engine_configs import engine_config
from eplb_plugin.engines import hooks
from eplb_plugin.engines.releases import VLLM, Engine
from eplb_plugin.engines.vllm import activation, state
from eplb_plugin.engines.vllm.activation import activate, confirm
from eplb_plugin.engines.vllm.reads import READS
from eplb_plugin.engines.vllm.worker_hooks import WORKER_HOOKS
from eplb_plugin.errors import PluginError
from eplb_plugin.settings.config import PluginConfig, parse_config


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    """Hooks, settings and logger as they were."""
    logger = logging.getLogger("eplb_plugin")
    before = logger.handlers, logger.propagate, logger.level
    yield
    hooks.remove(WORKER_HOOKS)
    state._active = None
    logger.handlers, logger.propagate = before[:2]
    logger.setLevel(before[2])


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., VllmConfig]:
    """vLLM's own configuration, of four ranks; changes: to its ParallelConfig, after it was made."""

    def make(redundant: int = 4, changes: dict[str, Any] | None = None, **options: Any) -> VllmConfig:
        sizes = {"tensor_parallel_size": 2, "data_parallel_size": 2}
        eplb = EPLBConfig(num_redundant_experts=redundant)
        config = engine_config(tmp_path, monkeypatch, eplb_config=eplb, **(sizes | options))
        config.parallel_config.worker_cls = "vllm.v1.worker.gpu_worker.Worker"  # a GPU's
        for name, value in (changes or {}).items():
            setattr(config.parallel_config, name, value)
        return config

    return make


def applied() -> list[bool]:
    return [status.applied for status in hooks.check(WORKER_HOOKS)]


def test_activate(engine: Callable[..., VllmConfig]) -> None:
    """Every runtime hook is in force, and the window and interval of the settings are the engine's."""
    config, vllm_config = PluginConfig(window_size=10, step_interval=20), engine()
    activate(config, vllm_config)
    assert all(applied())
    eplb = vllm_config.parallel_config.eplb_config
    assert (eplb.window_size, eplb.step_interval) == (10, 20)
    assert state.get_active() == state.Active(config, vllm_config)
    activate(config, vllm_config)  # a second worker in the process
    assert all(applied())


def test_engine_settings_stay_where_ours_are_left_out(engine: Callable[..., VllmConfig]) -> None:
    """window_size and step_interval left out: the engine's own."""
    vllm_config = engine()
    before = deepcopy(vllm_config.parallel_config.eplb_config)
    activate(PluginConfig(), vllm_config)
    assert vllm_config.parallel_config.eplb_config == before


@pytest.mark.parametrize(
    ("values", "changes", "line"),
    [
        ({}, {"enable_eplb": False}, "enable_eplb: found False"),
        ({}, {"enable_elastic_ep": True}, "enable_elastic_ep: found True"),
        ({}, {"num_redundant_experts": 5}, "num_redundant_experts: found 60 + 5 slots on 4 ranks"),
        (
            {"num_redundant_experts": 8},
            {},
            "num_redundant_experts: found 4 in the engine, expected 8; fix: start the server",
        ),
        ({"exact": {}}, {"enable_dbo": True}, "micro-batches: found on, expected whole batches for exact"),
        ({"exact": {}}, {"ubatch_size": 2}, "micro-batches: found on, expected whole batches for exact"),
        ({"topology": {"nodes": 3}}, {}, "topology: found nodes=3"),
        ({"topology": {"node_of_rank": [0, 1]}}, {}, "topology.node_of_rank: found 2 ranks, expected 4"),
    ],
)
def test_refused_before_anything_is_touched(
    values: Any, changes: dict[str, Any], line: str, engine: Callable[..., VllmConfig]
) -> None:
    """What does not fit is refused with nothing hooked and the engine's settings unchanged."""
    vllm_config = engine(changes.pop("num_redundant_experts", 4), changes)
    before = deepcopy(vllm_config.parallel_config.eplb_config)
    config = parse_config({**values, "window_size": 10, "step_interval": 20}, "")
    with pytest.raises(PluginError) as caught:
        activate(config, vllm_config)
    assert str(caught.value).startswith(line)
    assert "; fix: " in str(caught.value)
    assert not any(applied())
    assert state._active is None
    assert vllm_config.parallel_config.eplb_config == before


def test_moved_engine_refused(engine: Callable[..., VllmConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine whose internals moved is refused as a whole: no hook of the table is applied."""

    def rearrange(self: Any) -> None: ...

    monkeypatch.setattr(EplbState, "rearrange", rearrange)
    with pytest.raises(PluginError, match=r"EplbState\.rearrange: found \(self\), expected \(self, is_profile=False"):
        activate(PluginConfig(), engine())
    assert not any(applied())


@pytest.mark.parametrize(("version", "rank"), [*((one, 0) for one in VLLM.tested), ("0.33.1", 0), ("0.33.1", 1)])
def test_untested_version_warns(
    engine: Callable[..., VllmConfig], monkeypatch: pytest.MonkeyPatch, version: str, rank: int
) -> None:
    """A version that was not tested but whose signatures all match starts with one warning, of one rank."""
    monkeypatch.setattr(Engine, "installed", version)
    vllm_config = engine(changes={"data_parallel_rank": rank})
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    monkeypatch.setattr(logging.getLogger("vllm"), "handlers", [handler])
    activate(PluginConfig(), vllm_config)
    expected = f"vLLM {version} is untested (tested: {', '.join(VLLM.tested)}); all hooked signatures are checked"
    assert lines == ([] if version in VLLM.tested or rank else [expected])


def test_tested_version_is_the_installed_one(engine: Callable[..., VllmConfig]) -> None:
    """These tests run against the first version that the plugin says it was tested with."""
    assert VLLM.installed == VLLM.tested[0]


def test_a_release_without_an_attribute_is_refused(
    engine: Callable[..., VllmConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All signatures may match, and yet a class has lost what the adapter reads: nothing is touched."""
    monkeypatch.setitem(READS, "vllm.model_executor.layers.fused_moe.runner.moe_runner:MoERunner", "layer_id gone")
    with pytest.raises(PluginError, match=r"moe_runner:MoERunner: found no gone, expected gone, which"):
        activate(PluginConfig(), engine())
    assert not any(applied())


@pytest.mark.parametrize("level", ["debug", "warning"])
def test_log_level(engine: Callable[..., VllmConfig], level: str) -> None:
    """Our lines go where vLLM's go, from the level of the settings on."""
    activate(parse_config({"logging": {"level": level}}, ""), engine())
    logger = logging.getLogger("eplb_plugin")
    assert logger.level == getattr(logging, level.upper())
    assert logger.handlers == logging.getLogger("vllm").handlers


def test_another_rule_than_the_engines_is_refused(engine: Callable[..., VllmConfig]) -> None:
    """A plan made for a replica choice that vLLM does not make would be balanced for nobody."""
    with pytest.raises(PluginError, match=r"found nearest, expected auto or one of weighted, hash"):
        activate(PluginConfig(dispatch="nearest"), engine())


@pytest.mark.parametrize(("level", "communicator"), [(False, "nixl"), (True, "torch_gloo"), (True, "nixl")])
def test_sleep_mode_needs_another_carrier_than_nixl(
    engine: Callable[..., VllmConfig], level: bool, communicator: str
) -> None:
    """Sleep mode gives pages away that NIXL has registered: the two together are refused, each alone is not."""
    vllm_config = engine()
    vllm_config.model_config.enable_sleep_mode = level  # vLLM refuses it on a CPU
    vllm_config.parallel_config.eplb_config.communicator = communicator
    if level and communicator == "nixl":
        with pytest.raises(PluginError, match="enable_sleep_mode: found True with communicator nixl, expected another"):
            activate(PluginConfig(), vllm_config)
        assert not any(applied())
    else:
        activate(PluginConfig(), vllm_config)


def test_weights_from_a_trainer_are_refused(engine: Callable[..., VllmConfig]) -> None:
    """vLLM writes what it receives where experts lay at the start: after a move, into others' slots."""
    with pytest.raises(PluginError, match="weight_transfer_config: found one, expected none: vLLM writes experts"):
        activate(PluginConfig(), engine(weight_transfer_config=WeightTransferConfig(backend="nccl")))


@pytest.mark.parametrize(
    ("architecture", "line"),
    [("OlmoeForCausalLM", "num_redundant_experts: found 4, expected 0 for OlmoeForCausalLM, for which"), ("", "")],
)
def test_confirmed_before_the_model_is_loaded(
    engine: Callable[..., VllmConfig], monkeypatch: pytest.MonkeyPatch, architecture: str, line: str
) -> None:
    """A worker with its groups refuses replicas of a model without EPLB by its class; else it meets the others."""
    overrides = {"hf_overrides": {"architectures": [architecture]}} if architecture else {}
    vllm_config, met = engine(**overrides), []
    group = SimpleNamespace(cpu_group="the EPLB group's")
    monkeypatch.setattr(activation, "get_eplb_group", lambda: group)
    monkeypatch.setattr(activation, "all_present", met.append)
    if architecture:
        with pytest.raises(PluginError, match=line):
            confirm(vllm_config)
        assert met == []
    else:
        confirm(vllm_config)
        assert met == [group.cpu_group]
