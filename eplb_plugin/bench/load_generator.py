"""The engine's own load generator and what it reports."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from .engine import Load
from .server import Server, ServerError


def run_bench(server: Server, load: Load, result: Path, progress: Callable[[str], None]) -> dict[str, float]:
    """One run against a running server: latencies in ms (`ttft_p50` …) and `output_tokens_per_second`."""
    result.parent.mkdir(parents=True, exist_ok=True)
    result.unlink(missing_ok=True)
    log = result.with_suffix(".log")
    command = server.engine.bench(server.model, server.url, load, result)
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, stdout=stream, stderr=subprocess.STDOUT, env=server.environment, start_new_session=True
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
        raise ServerError(f"the load generator ended with exit code {process.returncode}\n{tail}")
    figures = server.engine.bench_figures(json.loads(result.read_text()))
    if (completed := figures.pop("completed")) != load.requests:
        raise ServerError(f"only {completed} of {load.requests} requests were answered")
    return figures
