"""Commands run as the console script runs them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cli_files import ROUTER
from eplb_plugin import RoutingStatistics, cli

Answer = tuple[int, str, str]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Run a command: exit code, stdout, stderr. That kernels are compiled is said elsewhere (`test_precompile`)."""
    monkeypatch.setattr(logging.getLogger("eplb_plugin.compiling"), "disabled", True)

    def run(*words: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["eplb-plugin", *map(str, words)])
        with pytest.raises(SystemExit) as exit_:
            cli.app()
        captured = capsys.readouterr()
        code = exit_.value.code
        assert code is None or isinstance(code, int)
        return code or 0, captured.out, captured.err

    return run


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """trace.npz and window.safetensors with the same tokens, later.npz with others."""
    np.savez(tmp_path / "trace.npz", topk_ids=ROUTER.window(600, 0), num_experts=32)
    np.savez(tmp_path / "later.npz", topk_ids=ROUTER.window(600, 1), num_experts=32)
    RoutingStatistics.from_topk(ROUTER.window(600, 0), 32, [3, 4]).save(tmp_path / "window.safetensors")
    return tmp_path
