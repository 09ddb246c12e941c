"""Schedulers that must not start end with one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from processes import run_ranks

from .schedulers import ON_CPU, Scheduler, Start, model_folder

RANKS = 2
SETTINGS = {"topology": {"nodes": 2}}


def refused(start: Start, spoil: Callable[[], None] | None = None) -> tuple[object, list[str]]:
    """How a scheduler ends that must not start: exit code, and what it wrote."""
    import contextlib
    import io
    import os

    os.environ |= ON_CPU
    written = io.StringIO()
    try:
        with contextlib.redirect_stderr(written):
            if spoil is not None:
                spoil()
            Scheduler(start)
    except SystemExit as end:
        return end.code, [line for line in written.getvalue().splitlines() if line.startswith("eplb-plugin")]
    return None, []


def another_plugin() -> None:
    """A plugin that replaces a function of ours after us, while the initial placement is made."""
    from sglang.srt.eplb.expert_distribution import ExpertDistributionRecorder, _ExpertDistributionRecorderReal

    original = ExpertDistributionRecorder.init_new

    def init_new(*args: Any, **kwargs: Any) -> Any:
        _ExpertDistributionRecorderReal.on_select_experts = lambda self, topk_ids: None
        return original(*args, **kwargs)

    ExpertDistributionRecorder.init_new = staticmethod(init_new)


@pytest.mark.parametrize(
    ("options", "spoil", "line"),
    [
        ({}, another_plugin, "on_select_experts: found not hooked, expected the eplb-plugin hook in force; fix: "),
        pytest.param({"ep_num_redundant_experts": 4, "eplb_algorithm": "deepseek"}, None,
                     "eplb_algorithm: found deepseek, expected affinity", marks=pytest.mark.full),
    ],
    ids=["another plugin", "another algorithm"],
)  # fmt: skip
def test_a_scheduler_ends_with_one_line(tmp_path: Path, options: dict[str, Any], spoil: Any, line: str) -> None:
    """SGLang would only log it, and die at the first rebalance."""
    start = Start(model_folder(tmp_path), [SETTINGS] * RANKS, options)
    for code, lines in run_ranks(RANKS, refused, start, spoil, timeout=200):
        assert code == 2
        assert len(lines) == 1
        assert line in lines[0]
