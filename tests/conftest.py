"""Which tests belong to which environment, and real servers on CPU for those of any engine.

Each engine has an environment of its own. What lies in a folder named after an engine runs in that engine's only;
everything else runs in any.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from eplb_plugin.bench.engine import Engine, Eplb, Layout
from eplb_plugin.bench.server import Server

ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault("SGLANG_USE_CPU_ENGINE", "1")  # SGLang asks when it is imported


def installed(engine: str) -> bool:
    spec = find_spec(engine)
    return spec is not None and spec.origin is not None  # the tests' own folder is found too, as a namespace


collect_ignore_glob = [
    folder for engine in ("sglang", "vllm") if not installed(engine) for folder in (engine, f"*/{engine}")
]


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Without torch, which an engine brings, the tests that need none still run."""
    report = yield
    if report.failed and find_spec("torch") is None and "No module named 'torch'" in str(report.longrepr):
        report.outcome, report.longrepr = "skipped", (str(collector.path), 0, "Skipped: needs torch")
    return report


# name -> arguments of scripts/make_model; Qwen3-MoE is sequence-parallel under TP x DP, GLM-4-MoE is not, and its first
# layer is dense
MODELS = {
    "qwen3_moe": ["--arch", "qwen3_moe"],
    "glm4_moe": ["--arch", "glm4_moe", "--mtp"],
    "mixtral": ["--arch", "mixtral"],
    "ernie4_5_moe": ["--arch", "ernie4_5_moe"],
    # vLLM gives these two no EPLB
    "olmoe": ["--arch", "olmoe"],
    "qwen2_moe": ["--arch", "qwen2_moe"],
}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a model of MODELS, each made once."""
    folder, made = tmp_path_factory.mktemp("models"), {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = folder / name
            command = [sys.executable, str(ROOT / "scripts" / "make_model"), str(made[name]), *MODELS[name]]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return made[name]

    return get


@pytest.fixture
def serve(engine: Engine, models: Callable[[str], Path], tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Start servers; what a test leaves running is stopped after it."""
    with _servers(engine, models, tmp_path) as start:
        yield start


@pytest.fixture(scope="module")
def serve_shared(
    engine: Engine, models: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Server]]:
    """The same for servers that a module's tests share."""
    with _servers(engine, models, tmp_path_factory.mktemp("shared")) as start:
        yield start


_running: list[Server] = []


@contextmanager
def _servers(engine: Engine, models: Callable[[str], Path], folder: Path) -> Iterator[Callable[..., Server]]:
    started: list[Server] = []

    def start(
        model: str | Path,
        layout: Layout,
        eplb: Eplb | None = None,
        settings: str | None = None,
        *,
        way: str = "flag",
        arguments: Sequence[str] = (),
        engine: Engine = engine,
        without: Sequence[str] = (),
        **environment: str,
    ) -> Server:
        """model: a name of MODELS or a folder; settings: the plugin's; way: how they reach the server, flag or
        environment; without: variables that a server is given otherwise."""
        own = folder / f"server{len(started)}"
        own.mkdir()
        command = [*engine.arguments(layout, eplb), *arguments]
        if settings is not None:
            file = own / "plugin.yaml"
            file.write_text(settings)
            if way == "flag":
                command += engine.plugin_arguments(file)
            else:
                environment["EPLB_PLUGIN_CONFIG"] = str(file)
        path, log = models(model) if isinstance(model, str) else model, own / "server.log"
        server = Server(engine, path, command, log, ranks=layout.ranks, environment=environment)
        for name in without:
            del server.environment[name]
        started.append(server)
        _running.append(server)
        server.start()
        return server

    try:
        yield start
    finally:
        for server in started:
            server.stop()
            _running.remove(server)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[Any]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed test shows the end of the running servers' logs."""
    report = yield
    if report.failed:
        for server in _running:
            report.sections.append((f"end of {server.log.parent.name}/server.log", server.tail(60)))
    return report
