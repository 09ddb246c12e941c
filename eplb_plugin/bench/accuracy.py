"""Accuracy of a server's answers by `lm_eval` (the EleutherAI harness), if that is installed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import mismatch
from .server import Server, ServerError


@dataclass(frozen=True)
class Accuracy:
    """value and its standard error, as lm_eval computes them over the task's questions."""

    metric: str
    value: float
    error: float

    @property
    def text(self) -> str:
        return f"{self.value:.4f} ± {self.error:.4f}"


def lm_eval_program() -> str:
    """Raises PluginError where lm_eval is not installed."""
    beside = Path(sys.executable).with_name("lm_eval")
    program = str(beside) if beside.exists() else shutil.which("lm_eval")
    if program is None:
        fix = "pip install 'lm-eval[api]', or leave --accuracy out"
        raise mismatch("--accuracy", found="no lm_eval", expected="it in PATH or beside this Python", fix=fix)
    return program


def command(program: str, task: str, model: Path, url: str, clients: int, out: Path) -> list[str]:
    arguments = {
        "model": model, "base_url": f"{url}/v1/completions", "num_concurrent": clients, "tokenized_requests": False,
        "tokenizer": model, "max_retries": 1,
    }  # fmt: skip
    joined = ",".join(f"{key}={value}" for key, value in arguments.items())
    words = ["--model", "local-completions", "--model_args", joined]
    return [program, *words, "--tasks", task, "--output_path", str(out)]


def measure(server: Server, task: str, clients: int, out: Path) -> Accuracy:
    """Ask the server all of the task's questions. Raises ServerError if lm_eval fails; its output is OUT.log."""
    log = out.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    words = command(lm_eval_program(), task, server.model, server.url, clients, out)
    with log.open("wb") as stream:
        process = subprocess.Popen(
            words, stdout=stream, stderr=subprocess.STDOUT, env=server.environment, start_new_session=True
        )
    try:
        code = process.wait()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if code:
        raise ServerError(f"lm_eval ended with exit code {code}\n{log.read_text(errors='replace')[-1500:]}")
    return read(out, task)


def read(out: Path, task: str) -> Accuracy:
    """The task's first metric with a standard error, in the newest results file; a task that was given as a file has a
    name of its own there, and is the first."""
    for path in sorted(out.rglob("results_*.json"), reverse=True):
        results = json.loads(path.read_text())["results"]
        figures: dict[str, Any] = results.get(task) or next(iter(results.values()), {})
        for key, value in figures.items():
            metric, _, kind = key.partition(",")
            error = figures.get(f"{metric}_stderr,{kind}")
            if isinstance(value, float | int) and isinstance(error, float | int):
                return Accuracy(f"{metric}, {kind}", float(value), float(error))
    raise ServerError(f"lm_eval left no figure of {task} in {out}")
