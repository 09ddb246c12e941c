"""The command line: what it prints, its exit codes, and errors in one line without a traceback."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

from eplb_plugin import __version__
from eplb_plugin.engines.releases import ENGINES, VLLM, Engine

doctor = import_module("eplb_plugin.cli.doctor")  # as an attribute of the package it is the command
CONFIGS = Path(__file__).parents[2] / "configs"
Answer = tuple[int, str, str]


@pytest.mark.parametrize("words", ["nonsense", "config nonsense", "config check", "doctor --nonsense"])
def test_wrong_use(call: Callable[..., Answer], words: str) -> None:
    """A command line that makes no sense: exit code 2, usage on stderr, no traceback."""
    code, out, err = call(*words.split())
    assert (code, out) == (2, "")
    assert "Usage" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "words",
    [
        "--help",
        "plan --help",
        "replay --help",
        "doctor --help",
        "config --help",
        "config check --help",
        "advise --help",
        "compare --help",
        "report --help",
        "workload make --help",
        "workload fit --help",
    ],
)
def test_help(call: Callable[..., Answer], words: str) -> None:
    """Every command explains itself."""
    code, out, err = call(*words.split())
    assert (code, err) == (0, "")
    assert "Usage" in out


def test_the_version_is_told(call: Callable[..., Answer]) -> None:
    assert call("--version") == (0, f"eplb-plugin {__version__}\n", "")


@pytest.mark.parametrize("command", ["plan", "replay", "report", "advise", "precompile"])
def test_help_names_dispatch_and_not_its_old_name(call: Callable[..., Answer], command: str) -> None:
    """`--dispatch` is the option's one name; `--rule` is still understood, and not shown."""
    code, out, err = call(command, "--help")
    assert (code, err) == (0, "")
    assert "--dispatch" in out
    assert "--rule" not in out
    code, _, err = call(command, "--rule")
    assert code == 2
    assert "requires an argument" in err


def test_doctor_without_an_engine(call: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch) -> None:
    """No engine installed is no failure: there is nothing to hook."""
    monkeypatch.setattr(Engine, "installed", None)
    code, out, err = call("doctor", "--json")
    assert (code, err) == (0, "")
    answer = json.loads(out)
    assert answer["eplb_plugin"] == __version__
    expected = [("not needed", "vLLM is not installed"), ("not needed", "SGLang is not installed")]
    assert [(row["status"], row["detail"]) for row in answer["hooks"]] == expected


@pytest.mark.parametrize("words", [(), ("--json",)])
@pytest.mark.parametrize(("status", "expected"), [("ok", 0), ("untested", 0), ("not needed", 0), ("fail", 1)])
def test_doctor_exit_code(
    call: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch, status: str, expected: int, words: tuple[str, ...]
) -> None:
    """One failing hook makes the exit code 1, however it is printed; anything else is 0."""
    detail = "found (a), expected (b); fix: c [d]"
    fine = {"engine": "vllm", "target": "m:A.f", "kind": "around", "status": "ok", "detail": "why"}
    row = {"engine": "vllm", "target": "m:B.g", "kind": "replace", "status": status, "detail": detail}
    monkeypatch.setattr(doctor, "_rows", lambda engine, peo: [fine, row] if engine is VLLM else [])
    monkeypatch.setenv("COLUMNS", "200")
    code, out, err = call("doctor", *words)
    assert (code, err) == (expected, "")
    assert status in out
    assert detail in out


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.package)
def test_doctor_with_an_engine_that_lacks_a_module(
    call: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch, engine: Engine
) -> None:
    """An engine without a module that the hooks need is one failing row, not a traceback."""
    monkeypatch.setattr(doctor, "ENGINES", (Engine(engine.package, engine.title, ("numpy",), ""),))
    monkeypatch.setattr(doctor.logging, "disable", lambda level: None)
    monkeypatch.setitem(sys.modules, f"eplb_plugin.engines.{engine.package}.worker_hooks", None)  # importing it fails
    code, out, err = call("doctor", "--json")
    assert (code, err) == (1, "")
    (row,) = json.loads(out)["hooks"]
    assert row["status"] == "fail"
    assert "; fix: use the engine version that the README names" in row["detail"]


TARGETS = {
    "vllm": [
        "vllm.distributed.eplb.eplb_state:EplbState.rearrange",
        "vllm.engine.arg_utils:EngineArgs.add_cli_args",
        "vllm.model_executor.layers.fused_moe.modular_kernel:FusedMoEKernelModularImpl.apply",
    ],
    "sglang": [
        "sglang.srt.eplb.eplb_algorithms:rebalance_experts",
        "sglang.srt.eplb.expert_distribution:_ExpertDistributionRecorderReal.on_select_experts",
        "sglang.srt.layers.moe.fused_moe_triton.layer:FusedMoE.forward_impl",
    ],
}


def test_doctor_asks_for_peo_if_settings_do(
    call: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The hooks of per-expert overlap are looked at only where the settings switch it on."""
    asked: list[bool] = []
    monkeypatch.setattr(doctor, "_rows", lambda engine, peo: asked.append(peo) or [])
    (tmp_path / "peo.yaml").write_text("peo: {method: overlap-2}")
    for words in ((), ("--config", CONFIGS / "default.yaml"), ("--config", tmp_path / "peo.yaml")):
        assert call("doctor", *words, "--json")[0] == 0
    assert asked == [False, False, False, False, True, True]


@pytest.mark.skipif(not any(engine.installed for engine in ENGINES), reason="needs an engine")
def test_doctor_with_the_installed_engine(tmp_path: Path) -> None:
    """The real thing: every hook fits, stdout is JSON and nothing else."""
    (tmp_path / "peo.yaml").write_text("peo: {}")
    words = ["doctor", "--json", "--config", str(tmp_path / "peo.yaml")]
    command = [sys.executable, "-c", "from eplb_plugin.cli import app; app()", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["hooks"]
    for engine in ENGINES:
        found = [row for row in rows if row["engine"] == engine.package]
        assert {row["status"] for row in found} == {"ok" if engine.installed else "not needed"}
        assert not engine.installed or set(TARGETS[engine.package]) <= {row["target"] for row in found}
    assert all(row["detail"] for row in rows)
