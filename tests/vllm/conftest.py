"""vLLM's servers are compared with a single process of its own without EP."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from eplb_plugin.bench.engine import Completion, Engine, Layout
from eplb_plugin.bench.server import Server
from eplb_plugin.bench.vllm import RUNNER_V1, VLLM
from server_plugins import python_path
from serving.greedy import complete_all


@pytest.fixture(scope="session")
def fault_path() -> str:
    return python_path("vllm")


@pytest.fixture(scope="session")
def engine() -> Engine:
    return VLLM


@pytest.fixture(scope="session")
def reference(
    models: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], list[Completion]]:
    """What a single process without expert parallelism answers, by vLLM's other model runner, V1."""
    known: dict[str, list[Completion]] = {}

    def get(name: str) -> list[Completion]:
        if name not in known:
            log = tmp_path_factory.mktemp("reference") / "server.log"
            with Server(VLLM, models(name), VLLM.arguments(Layout()), log, ranks=1, environment=RUNNER_V1) as server:
                known[name] = complete_all(server)
        return known[name]

    return get
