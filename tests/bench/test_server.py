"""A server in a process group of its own: waited for, watched, and ended with all its children."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from eplb_plugin.bench.server import Server, ServerError
from stand_in import StandIn, left


def server(folder: Path, way: str, **options: object) -> Server:
    return Server(StandIn(folder, way, {}), Path("m"), [], folder / "logs" / "server.log", ranks=None, **options)


def test_nothing_of_it_is_left(tmp_path: Path) -> None:
    """Inside it answers; afterwards neither it nor its child lives, also where the body fails."""
    running = server(tmp_path, "serves")

    def fail() -> None:
        with running:
            assert running.healthy()
            assert running.ended() is None
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not running.healthy()
    assert left(running.engine) == []


def test_one_that_dies_says_why(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=r"exit code 1 before it was ready\n(.*\n)*RuntimeError: no GPU here"):
        server(tmp_path, "dies").__enter__()
    assert (tmp_path / "logs" / "server.log").exists()


def test_one_that_never_answers_is_given_up(tmp_path: Path) -> None:
    waiting = server(tmp_path, "serves", start_seconds=0)
    waiting.url = "http://127.0.0.1:9"  # nobody answers there
    with pytest.raises(ServerError, match="not ready after 0 s"):
        waiting.__enter__()
    assert waiting.ended() is not None


def test_ranks_get_a_core_each_only_in_the_test_bed(tmp_path: Path) -> None:
    """On GPUs the user's environment is the server's; in the test bed ranks share the cores in turn."""
    assert server(tmp_path, "serves").environment == dict(os.environ)
    bed = Server(StandIn(tmp_path, "serves", {}), Path("m"), [], tmp_path / "log", ranks=2, environment={"A": "b"})
    assert bed.environment["VLLM_CPU_OMP_THREADS_BIND"] == "|".join(
        str(rank % (os.cpu_count() or 1)) for rank in (0, 1)
    )
    assert (bed.environment["HF_HUB_OFFLINE"], bed.environment["A"]) == ("1", "b")
