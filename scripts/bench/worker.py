"""A process that answers requests: a JSON line each way, so that what it imports and compiles stays out of ours."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")}


class Worker:
    """`name` is its argument, and what it measures. `error` says why it cannot run, or is None."""

    def __init__(self, python: Path, module: str, name: str, environment: Mapping[str, str]) -> None:
        self.name = name
        if not python.exists():
            self.error: str | None = f"no environment at {python}"
            return
        self._process = subprocess.Popen(
            [str(python), "-m", module, name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env={**os.environ, **environment},
        )  # fmt: skip
        self.error = self._answer().get("error")

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        if self.error is None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return json.loads(line) if line else {"error": f"ended with {self._process.wait()}"}
