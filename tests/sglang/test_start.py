"""Ways in and ways that are refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from eplb_plugin.bench.engine import Completion
from eplb_plugin.bench.server import Server
from eplb_plugin.bench.sglang import SGLANG
from serving.greedy import PROMPTS, TOKENS, largest_difference
from sglang_servers import EPLB, LAYOUT, SETTINGS, TOLERANCE

pytestmark = pytest.mark.server

PROGRAM = """
import json, sys
from sglang import Engine
if __name__ == "__main__":  # the ranks are started afresh and import this file
    options, prompts, sampling = json.loads(sys.argv[1])
    engine = Engine(**options)
    for _ in range(2):
        answers = engine.generate(input_ids=prompts, sampling_params=sampling, return_logprob=True)
    print("answers:" + json.dumps(answers))
    engine.shutdown()
"""


def test_an_engine_in_python_takes_the_settings_from_the_environment(
    models: Callable[[str], Path], reference: Callable[[str], list[Completion]], tmp_path: Path
) -> None:
    """`Engine(...)` with EPLB_PLUGIN_CONFIG: equal output, and rebalances that the plugin planned."""
    (tmp_path / "plugin.yaml").write_text(SETTINGS.format(policy="affinity"))
    (tmp_path / "program.py").write_text(PROGRAM)
    options = as_options([*SGLANG.arguments(LAYOUT, EPLB), "--eplb-algorithm", "affinity"])
    options |= {"model_path": str(models("qwen3_moe"))}
    sampling = {"temperature": 0, "max_new_tokens": TOKENS, "ignore_eos": True}
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "program.py"), json.dumps([options, PROMPTS, sampling])],
        env={**os.environ, **SGLANG.environment("0|1"), "EPLB_PLUGIN_CONFIG": str(tmp_path / "plugin.yaml")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=400)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    (answers,) = [line for line in output.splitlines() if line.startswith("answers:")] or [output]
    completions = [SGLANG.completion(answer) for answer in json.loads(answers.removeprefix("answers:"))]
    assert largest_difference(reference("qwen3_moe"), completions) < TOLERANCE
    assert "slots move, planned in" in output


def as_options(words: list[str]) -> dict[str, object]:
    """Words of a command line as keyword arguments."""
    options: dict[str, object] = {}
    for word, value in zip(words, [*words[1:], "--"], strict=True):
        if word.startswith("--"):
            flag = value.startswith("--")
            number = value.replace(".", "", 1).isdigit()
            options[word[2:].replace("-", "_")] = True if flag else json.loads(value) if number else value
    return options


def test_bad_settings_end_the_start_at_once(serve: Callable[..., Server]) -> None:
    """One line with key, value, rule and the nearest valid value; no traceback; no model is loaded."""
    server = serve("qwen3_moe", LAYOUT, EPLB, "window_size: 0\n")
    assert server.wait_ended(120) not in (None, 0)
    lines = [line for line in server.text().splitlines() if line.startswith("eplb-plugin:")]
    assert len(lines) == 1
    assert "window_size: found 0, expected an integer in 1..1000000; fix: the nearest valid value is 1" in lines[0]
    assert "Traceback" not in server.text()
    assert "Load weight begin" not in server.text()
