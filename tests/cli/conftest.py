"""Commands run as the console script runs them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

import pytest

from eplb_plugin import cli

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
