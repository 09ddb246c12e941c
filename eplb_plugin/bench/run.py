"""`eplb-plugin bench`: the same load on every arm's server, and the table of what differs.

Every arm's server is started anew in every run, arms in turn and rotated, so that no drift of the machine and no single
placement is taken for a difference. It leaves in --out: settings.json, a folder per arm with the load generator's own
JSON of every run and concurrency (what `eplb-plugin compare` reads), and logs.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from ..errors import PluginError
from ..observe.bench_results import FIGURES, read_runs
from ..observe.comparison import compare, runs_needed
from ..observe.comparison_table import show
from .accuracy import Accuracy, measure
from .arms import Arm, arm_arguments
from .engines import ENGINES, LAYOUTS
from .load_generator import run_bench
from .options import COMMAND, Options, parse
from .progress import Progress
from .rounds import rotated
from .running import RunningServer
from .server import Server, ServerError

MakeModel = Callable[[Path], Path]
LEVEL = 0.05  # chance of any false verdict in the table


class Benchmark:
    """All runs of all arms; `run()` starts and stops the servers. small_model: writes the test bed's into a folder."""

    def __init__(self, options: Options, progress: Progress, small_model: MakeModel | None = None) -> None:
        self.options, self.progress = options, progress
        self.engine, self.layout = ENGINES[options.engine], LAYOUTS[options.engine]
        self.accuracy: dict[str, Accuracy] = {}
        options.out.mkdir(parents=True, exist_ok=True)
        self.model = options.model or self._small_model(small_model)
        self.arguments = {arm.name: self._arguments(arm) for arm in options.arms}
        self._write("settings.json", self._settings())

    def run(self) -> None:
        """Raises ServerError, which names the arm, if a server or a load generator fails."""
        self._foretell()
        for run in range(self.options.runs):
            for arm in rotated(self.options.arms, run):
                try:
                    self._run_arm(arm, run)
                except ServerError as error:
                    raise ServerError(f"{arm.name}, run {run + 1}: {error}") from None

    def _foretell(self) -> None:
        """Say before hours are spent if so few runs cannot decide anything."""
        options = self.options
        comparisons = len(options.concurrency) * len(FIGURES) * (len(options.arms) - 1)
        needed = runs_needed(LEVEL, max(comparisons, 1))
        if comparisons and options.runs < needed:
            few = f"--runs {options.runs} can decide none of {comparisons} comparisons, --runs {needed} could"
            self.progress.say(f"{few}; fewer arms or concurrencies need fewer")

    def _run_arm(self, arm: Arm, run: int) -> None:
        options, out, name = self.options, self.options.out, f"{arm.name}-run{run + 1}"
        self.progress.say(f"[bold]{arm.name}[/], run {run + 1} of {options.runs}: waiting for the server")
        with self._server(arm, out / "logs" / f"{name}.log") as server:
            self.progress.say("ready; warming up (discarded)")
            warming = self.progress.running("warming up")
            run_bench(server, options.warmup_load(run), out / "warmup" / f"{name}.json", warming)
            for index, clients in enumerate(options.concurrency):
                self.progress.say(f"measuring at concurrency {clients}")
                result = out / arm.name / f"run{run + 1}-c{clients}.json"
                run_bench(server, options.load(run, index), result, self.progress.running(f"concurrency {clients}"))
            if options.accuracy and run == 0:
                self.progress.say(f"accuracy: {options.accuracy}")
                found = measure(server, options.accuracy, options.concurrency[0], out / "accuracy" / arm.name)
                self.accuracy[arm.name] = found
                self._write("accuracy.json", {name: asdict(one) for name, one in self.accuracy.items()})

    def _server(self, arm: Arm, log: Path) -> AbstractContextManager[Server]:
        options = self.options
        if arm.name in options.urls:
            return RunningServer(self.engine, self.model, options.urls[arm.name])
        ranks = self.layout.ranks if options.on_cpu else None
        return Server(
            self.engine, self.model, self.arguments[arm.name], log, ranks=ranks,
            start_seconds=options.start_seconds, progress=self.progress.running("server"),
        )  # fmt: skip

    def _arguments(self, arm: Arm) -> list[str]:
        """The test bed's if on CPU, the user's, then what the arm adds."""
        if self.options.urls:
            return []
        bed = self.engine.arguments(self.layout) if self.options.on_cpu else []
        own = arm_arguments(self.engine, arm, self.options.eplb, self.options.out)
        return [*bed, *self.options.server_arguments, *own]

    def _small_model(self, make: MakeModel | None) -> Path:
        assert make is not None  # the options refuse no model without a test bed
        self.progress.say("making a small MoE model")
        return make(self.options.out / "model")

    def _settings(self) -> dict[str, Any]:
        options = self.options
        loads = [asdict(options.load(0, index)) for index in range(len(options.concurrency))]
        return {
            "engine": self.engine.name, "version": metadata.version(self.engine.name),
            "plugin": metadata.version("eplb_plugin"), "model": str(self.model),
            "arms": {arm.name: options.urls.get(arm.name, self.arguments[arm.name]) for arm in options.arms},
            "runs": options.runs, "loads": loads, "warmup": asdict(options.warmup_load(0)), "on_cpu": options.on_cpu,
            "machine": {"cpus": os.cpu_count(), "python": platform.python_version(), "gpus": _gpus()},
        }  # fmt: skip

    def _write(self, name: str, values: Any) -> None:
        (self.options.out / name).write_text(json.dumps(values, indent=2, default=str) + "\n")

    def show(self) -> None:
        """The table of `eplb-plugin compare`, with a column for accuracy if it was measured."""
        arms = {arm.name: read_runs(self.options.out / arm.name) for arm in self.options.arms}
        if len(arms) < 2:
            print(f"one arm: nothing to compare; results: {self.options.out}")
            return
        column = None
        if self.options.accuracy:
            column = (self.options.accuracy, {name: one.text for name, one in self.accuracy.items()})
        show(compare(arms, LEVEL, least_runs=1), column)
        print(f"results: {self.options.out}")


def _gpus() -> list[str]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True).stdout.splitlines()


def _one_line(error: ServerError, out: Path) -> str:
    """What happened, the last line of the log that names an error, and where the rest is."""
    first, *log = [line.strip() for line in str(error).splitlines()]
    telling = [line for line in log if "error" in line.lower()] or [line for line in log if line]
    return "; ".join([first, *telling[-1:], f"logs: {out}"])


def main(words: Sequence[str], small_model: MakeModel | None = None) -> int:
    """Exit code. words: the command line without the command. small_model: only the test bed has one, and `--cpu`."""
    # a shell starts what it puts in the background with Ctrl-C's signal ignored, which would outlive an interrupt
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # as on Ctrl-C: the servers are stopped on the way out
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options = None
    try:
        options = parse(words, test_bed=small_model is not None)
        benchmark = Benchmark(options, Progress(), small_model)
        benchmark.run()
        benchmark.show()
    except PluginError as error:
        print(f"{COMMAND}: {error}", file=sys.stderr)
        return 2
    except ServerError as error:
        assert options is not None
        print(f"{COMMAND}: {_one_line(error, options.out)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{COMMAND}: interrupted; all servers are stopped", file=sys.stderr)
        return 130
    return 0
