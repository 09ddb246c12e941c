"""Real vLLM servers on CPU. Models are made once per run; a single process without EP is the reference of each."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving.engine import Completion, Eplb, Layout
from serving.greedy import complete_all
from serving.server import Server
from serving.vllm import VLLM

if find_spec("vllm") is None:
    collect_ignore_glob = ["*"]  # no engine in this environment: there is nothing to start

ROOT = Path(__file__).resolve().parents[2]
# name -> arguments of scripts/make_model; Qwen3-MoE is sequence-parallel under TP x DP, GLM-4-MoE is not
MODELS = {
    "qwen3_moe": ["--arch", "qwen3_moe"],
    "glm4_moe": ["--arch", "glm4_moe", "--mtp"],
}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder, made = tmp_path_factory.mktemp("models"), {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = folder / name
            command = [sys.executable, str(ROOT / "scripts" / "make_model"), str(made[name]), *MODELS[name]]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return made[name]

    return get


@pytest.fixture(scope="session")
def reference(
    models: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], list[Completion]]:
    """What a single process without expert parallelism answers."""
    known: dict[str, list[Completion]] = {}

    def get(name: str) -> list[Completion]:
        if name not in known:
            log = tmp_path_factory.mktemp("reference") / "server.log"
            with Server(VLLM, models(name), VLLM.arguments(Layout()), log, ranks=1) as server:
                known[name] = complete_all(server)
        return known[name]

    return get


@pytest.fixture
def serve(models: Callable[[str], Path], tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Start servers; what a test leaves running is stopped after it."""
    started: list[Server] = []

    def start(
        model: str,
        layout: Layout,
        eplb: Eplb,
        settings: str | None = None,
        way: str = "flag",
        arguments: Sequence[str] = (),
        **environment: str,
    ) -> Server:
        """way: how the settings reach the server: flag, additional-config or environment."""
        folder = tmp_path / f"server{len(started)}"
        folder.mkdir()
        command = [*VLLM.arguments(layout, eplb), *arguments]
        if settings is not None:
            file = folder / "plugin.yaml"
            file.write_text(settings)
            if way == "flag":
                command += ["--eplb-plugin-config", str(file)]
            elif way == "additional-config":
                command += ["--additional-config", json.dumps({"eplb_plugin": yaml.safe_load(settings)})]
            else:
                environment["EPLB_PLUGIN_CONFIG"] = str(file)
        server = Server(
            VLLM, models(model), command, folder / "server.log", ranks=layout.ranks, environment=environment
        )
        started.append(server)
        server.start()
        return server

    yield start
    for server in started:
        server.stop()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[Any]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed server test shows the end of its servers' logs."""
    report = yield
    folder = getattr(item, "funcargs", {}).get("tmp_path")
    if report.failed and folder:
        for log in sorted(folder.glob("**/server.log")):
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-60:])
            report.sections.append((f"end of {log.parent.name}/server.log", tail))
    return report
