"""vLLM's servers are compared with a single process of its own without EP."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from serving.engine import Completion, Engine, Layout
from serving.greedy import complete_all
from serving.server import Server
from serving.vllm import VLLM

FAULTS = Path(__file__).with_name("faults")


@pytest.fixture(scope="session")
def fault_path() -> str:
    """PYTHONPATH of a server that is to load the tests' own plugins: faults, and a witness of weights and maps."""
    return os.pathsep.join([str(FAULTS), *filter(None, [os.environ.get("PYTHONPATH")])])


@pytest.fixture(scope="session")
def engine() -> Engine:
    return VLLM


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
