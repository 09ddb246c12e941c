"""The engine's own load generator, `vllm bench serve`, and what it reports."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .server import ENVIRONMENT, Server, ServerError

PERCENTILES = (50, 90, 99)
METRICS = ("ttft", "tpot", "itl")


@dataclass(frozen=True)
class Load:
    """Random prompts in a closed loop."""

    requests: int
    concurrency: int
    input_tokens: int = 64
    output_tokens: int = 32
    seed: int = 1


def run_bench(server: Server, load: Load, result: Path, progress: Callable[[str], None]) -> dict[str, float]:
    """One run against a running server: latencies in ms (`ttft_p50` …) and `output_tokens_per_second`."""
    result.parent.mkdir(parents=True, exist_ok=True)
    log = result.with_suffix(".log")
    command = [
        str(Path(sys.executable).with_name("vllm")), "bench", "serve", "--backend", "vllm",
        "--base-url", server.url, "--model", str(server.model), "--dataset-name", "random",
        "--random-input-len", str(load.input_tokens), "--random-output-len", str(load.output_tokens),
        "--num-prompts", str(load.requests), "--max-concurrency", str(load.concurrency),
        "--ignore-eos", "--seed", str(load.seed), "--disable-tqdm",
        "--percentile-metrics", ",".join(METRICS), "--metric-percentiles", ",".join(map(str, PERCENTILES)),
        "--save-result", "--result-dir", str(result.parent), "--result-filename", result.name,
    ]  # fmt: skip
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, stdout=stream, stderr=subprocess.STDOUT, env={**os.environ, **ENVIRONMENT}, start_new_session=True
        )
    began = time.monotonic()
    try:
        while process.poll() is None:
            progress(f"{time.monotonic() - began:.0f} s")
            if server.ended() is not None:
                raise ServerError(f"the server ended during the benchmark\n{server.tail()}")
            time.sleep(1)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise ServerError(f"vllm bench serve ended with exit code {process.returncode}\n{tail}")
    return _figures(json.loads(result.read_text()), load)


def _figures(report: dict[str, Any], load: Load) -> dict[str, float]:
    if report["completed"] != load.requests:
        raise ServerError(f"only {report['completed']} of {load.requests} requests were answered")
    figures = {f"{name}_p{share}": report[f"p{share}_{name}_ms"] for name in METRICS for share in PERCENTILES}
    return {**figures, "output_tokens_per_second": report["output_throughput"]}
