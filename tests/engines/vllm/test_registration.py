"""The plugin in vLLM: hooks that fit it, nothing changed until it is asked for, refusals by a server in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from vllm.distributed.eplb.eplb_state import EplbState
from vllm.engine.arg_utils import EngineArgs

from eplb_plugin.engines import hooks
from eplb_plugin.engines.vllm import register
from eplb_plugin.engines.vllm.startup_hooks import STARTUP_HOOKS
from eplb_plugin.engines.vllm.worker_hooks import WORKER_HOOKS
from eplb_plugin.errors import PluginError


def test_hooks_fit_the_installed_engine() -> None:
    """Every target of both tables exists in the installed vLLM with the signature that the hook was written for."""
    for status in hooks.check([*STARTUP_HOOKS, *WORKER_HOOKS]):
        assert status.problem == ""
        assert status.hook.why


def test_differing_signature_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """If one function of the engine has changed, nothing is hooked, and found, expected and fix are said."""

    def step(self: Any, is_dummy: bool = False, is_profile: bool = False) -> None: ...

    monkeypatch.setattr(EplbState, "step", step)
    with pytest.raises(PluginError) as caught:
        hooks.apply(WORKER_HOOKS)
    assert str(caught.value) == (
        "vllm.distributed.eplb.eplb_state:EplbState.step: found (self, is_dummy=False, is_profile=False), "
        "expected (self, is_dummy=False, is_profile=False, log_stats=False); "
        "fix: use the engine version that the README names, or a newer eplb-plugin"
    )
    assert not any(status.applied for status in hooks.check(WORKER_HOOKS))


def test_register_can_be_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM may load plugins several times in a process: the second time hooks nothing again."""
    monkeypatch.delenv("EPLB_PLUGIN_DISABLE", raising=False)
    before = {status.hook.target: status.applied for status in hooks.check(STARTUP_HOOKS)}
    register()
    first = EngineArgs.__dict__["from_cli_args"]
    register()
    assert EngineArgs.__dict__["from_cli_args"] is first
    assert all(status.applied for status in hooks.check(STARTUP_HOOKS))
    hooks.remove([hook for hook in STARTUP_HOOKS if not before[hook.target]])


# a process of its own

INERT = """
import importlib, json, os, pkgutil, sys
import vllm.plugins

PACKAGES = ("vllm.distributed.eplb", "vllm.model_executor.layers.fused_moe.router")
NAMES = [f"{p}.{m.name}" for p in PACKAGES for m in pkgutil.iter_modules(importlib.import_module(p).__path__)]
NAMES += [*PACKAGES, "vllm.model_executor.layers.fused_moe", "vllm.model_executor.layers.fused_moe.layer",
          "vllm.model_executor.layers.fused_moe.config", "vllm.model_executor.models.interfaces",
          "vllm.v1.worker.gpu_model_runner", "vllm.v1.worker.cpu_model_runner", "vllm.v1.worker.worker_base",
          "vllm.engine.arg_utils", "vllm.v1.engine.core", "vllm.v1.engine.async_llm", "vllm.v1.engine.llm_engine",
          "vllm.v1.executor.abstract",
          "vllm.config", "vllm.config.parallel", "vllm.distributed.parallel_state",
          "vllm._custom_ops", "vllm._C_stable_libtorch"]

def symbols():
    found = {}
    for name in NAMES:
        try:
            module = importlib.import_module(name)
        except Exception:  # needs a GPU
            continue
        for key, value in vars(module).items():
            found[f"{name}:{key}"] = value
            if isinstance(value, type) and value.__module__ == name:
                found.update({f"{name}:{key}.{attribute}": one for attribute, one in vars(value).items()})
    return found

def load():
    loaded, before, vllm.plugins.plugins_loaded = set(sys.modules), symbols(), False
    vllm.plugins.load_general_plugins()
    after = symbols()
    changed = sorted(name for name in {*before, *after} if before.get(name) is not after.get(name))
    new = sorted(name for name in set(sys.modules) - loaded if name.split(".")[0] in ("eplb_plugin", "numba"))
    return {"symbols": len(before), "changed": changed, "new": new}

symbols()
results = {}
os.environ["EPLB_PLUGIN_DISABLE"] = "1"
results["disabled"] = load()
os.environ["EPLB_PLUGIN_DISABLE"] = "0"
results["inert"] = load()
print(json.dumps(results))
"""


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("EPLB_PLUGIN")}
    variables = {**kept, "VLLM_PLUGINS": "eplb_plugin"}
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=180, check=False)


def test_inert_until_asked_for() -> None:
    """Disabled, vLLM's plugin loader changes no symbol; enabled, only those of the entrance are wrapped."""
    done = run([sys.executable, "-c", INERT])
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    assert results["disabled"]["symbols"] > 500
    assert results["disabled"]["changed"] == []
    assert not [name for name in results["disabled"]["new"] if name.startswith("eplb_plugin.engines.hooks")]
    assert results["inert"]["changed"] == sorted(hook.target for hook in STARTUP_HOOKS)
    new = results["inert"]["new"]
    assert "eplb_plugin.engines.vllm.startup_hooks" in new
    assert "eplb_plugin.engines.vllm.worker_hooks" not in new
    assert not [
        name for name in new if name.startswith(("numba", "eplb_plugin.planning", "eplb_plugin.runtime.rebalancer"))
    ]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        pytest.param(
            ["--enable-eplb", "--eplb-plugin-config", "/no/such.yaml"],
            "/no/such.yaml: cannot be read (No such file",
            marks=pytest.mark.full,
        ),
        (
            [
                "-tp",
                "2",
                "-dp",
                "2",
                "--enable-eplb",
                "--additional-config",
                '{"eplb_plugin": {"topology": {"nodes": 3}}}',
            ],
            "topology: found nodes=3 × ranks_per_node=1, expected a product of 4 (the EP size); fix: nodes=2, ",
        ),
    ],
    ids=["one server process", "several"],
)
def test_server_refuses_before_the_model(words: list[str], line: str) -> None:
    """`vllm serve` with a model that does not exist ends with our line, code 2, no traceback: it looked at us first."""
    command = [str(Path(sys.executable).with_name("vllm")), "serve", "/no/such/model", *words]
    done = run(command)
    assert done.returncode == 2, done.stderr
    lines = [text for text in done.stderr.splitlines() if "eplb-plugin" in text]
    assert len(lines) == 1
    assert lines[0].startswith(f"eplb-plugin: {line}")
    assert "Traceback" not in done.stdout + done.stderr
    assert "resolve_model" not in done.stdout + done.stderr
