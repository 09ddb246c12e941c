"""`scripts/demo`: the same model and the same traffic on no EPLB, vanilla EPLB and the plugin."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from eplb_cpu_engines.meter import read_meter
from rich.console import Console
from rich.table import Table

from eplb_plugin.bench.engine import METRICS, PERCENTILES, Completion, Engine, Eplb, Layout, Load
from eplb_plugin.bench.engines import ENGINES, LAYOUTS
from eplb_plugin.bench.load_generator import run_bench
from eplb_plugin.bench.progress import Progress
from eplb_plugin.bench.server import Server, ServerError
from eplb_plugin.observe.demo_results import EQUAL, DemoArm, DemoResults

from .aftermath import leave_advice
from .greedy import PROMPTS, complete_all, largest_difference
from .made_model import make_model

ROOT = Path(__file__).resolve().parents[2]
EPLB = Eplb(redundant_experts=4, window_size=48, step_interval=96)
MODEL = ["--arch", "qwen3_moe", "--layers", "4", "--experts", "32", "--top-k", "4"]
# two declared nodes of one rank each: on one machine the links between them are not slow, so what the placement saves
# is counted (copies per token), not felt (latency)
CONFIG = "policy: affinity\ntopology: {nodes: 2, ranks_per_node: 1}\n"


@dataclass
class Outcome:
    """One arm's row of the table; means over the measured pass."""

    arm: str
    figures: dict[str, float] = field(default_factory=dict)
    balancedness: float = 0.0
    copies_per_token: float = 0.0
    slots_moved: int = 0
    rebalances: int = 0
    largest_logprob_difference: float = 0.0


@dataclass(frozen=True)
class Run:
    """What all arms have in common."""

    engine: Engine
    load: Load

    @property
    def out(self) -> Path:
        return ROOT / "out" / "demo" / self.engine.name

    @property
    def layout(self) -> Layout:
        return LAYOUTS[self.engine.name]

    def title(self, arm: str) -> str:
        return self.engine.arms[arm]


def run_arm(run: Run, arm: str, reference: list[Completion] | None, progress: Progress) -> Any:
    """Start the arm's server, warm it up until its placement has settled, measure, and check its output."""
    engine, load, layout, folder = run.engine, run.load, run.layout, run.out / arm
    progress.say(f"[bold]{run.title(arm)}[/]: starting the server")
    server = Server(
        engine,
        run.out / "model",
        engine.arm_arguments(arm, layout, EPLB, run.out / "affinity.yaml"),
        folder / "server.log",
        ranks=layout.ranks,
        environment={"EPLB_METER_DIR": str(folder / "meter"), "EPLB_METER_NODES": "2"},
        progress=progress.running("server"),
    )
    with server:
        progress.say("ready; warming up (discarded)")
        complete_all(server)
        run_bench(server, load, folder / "warmup.json", progress.running("warming up"))
        first = _windows(folder)
        progress.say("measuring with the engine's own load generator")
        figures = run_bench(server, load, folder / "bench.json", progress.running("measuring"))
        metered = _metered(folder, first)
        progress.say("checking the output")
        completions = complete_all(server)
    outcome = Outcome(arm, figures, **metered)
    if reference is not None:
        outcome.largest_logprob_difference = largest_difference(reference, completions)
    return outcome, completions


def _windows(folder: Path) -> int:
    """Meter windows finished so far: the measured pass begins after them."""
    windows = read_meter(folder / "meter")["window"]
    return int(windows[-1]) + 1 if len(windows) else 0


def _metered(folder: Path, first: int) -> dict[str, Any]:
    """What the meter counted since window `first`. Every step is routed by a placement that was planned on earlier
    steps, so these are held-out figures; moves and rebalances are those since the server started.
    """
    meter = read_meter(folder / "meter", min_tokens=64)
    measured = meter["window"] >= first
    if not measured.any():
        raise ServerError(f"the routing meter saw no traffic; see {folder / 'meter'}")
    return {
        "balancedness": float(meter["balancedness"][measured].mean()),
        "copies_per_token": float(meter["copies_per_token"][measured].mean()),
        "slots_moved": meter["slots_moved"],
        "rebalances": meter["rebalances"],
    }


def results_of(run: Run, outcomes: list[Outcome]) -> DemoResults:
    ranks = f"DP{run.layout.data_parallel}" if run.layout.data_parallel > 1 else f"TP{run.layout.tensor_parallel}"
    model = "4 MoE layers, 32 + 4 experts, top-4, fp32"
    return DemoResults(
        engine=run.engine.name, title=f"{run.engine.title}: {model}, {ranks} + EP2 on 2 declared nodes, CPU",
        prompts=len(PROMPTS), metrics=METRICS, percentiles=PERCENTILES, load=asdict(run.load), eplb=asdict(EPLB),
        layout=asdict(run.layout), machine={"cpus": os.cpu_count(), "python": platform.python_version()},
        arms=[DemoArm(title=run.title(outcome.arm), **asdict(outcome)) for outcome in outcomes],
    )  # fmt: skip


def show(results: DemoResults, console: Console) -> None:
    table = Table("", title=results.title)
    for arm in results.arms:
        table.add_column(arm.title, justify="right")
    for part in results.table():
        for name, cells in part:
            table.add_row(name, *cells)
        table.add_section()
    console.print(table)
    console.print(
        "Counted from the routing of real requests: copies, balancedness (each step is routed by a placement planned\n"
        "on earlier ones), moves. Latencies are measured on this machine, where nodes are declared and links are\n"
        "loopback: one short run on shared cores does not rank the arms by speed.",
        style="dim", highlight=False,
    )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/demo", description="Compare no EPLB, vanilla EPLB and eplb_plugin.")
    parser.add_argument("--engine", default="vllm", choices=ENGINES, help="the engine to run (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=160, help="requests per pass (default: %(default)s)")
    parser.add_argument("--concurrency", type=int, default=16, help="requests in flight (default: %(default)s)")
    parser.add_argument("--arms", help="arms to run, in order (default: all of the engine's)")
    options = parser.parse_args()
    known = list(ENGINES[options.engine].arms)
    arms = options.arms.split(",") if options.arms else known
    if unknown := sorted(set(arms) - set(known)):
        parser.error(f"--arms: found {', '.join(unknown)}, expected some of {', '.join(known)}")
    # a shell starts what it puts in the background with Ctrl-C's signal ignored, which would outlive an interrupt
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # as on Ctrl-C: the servers are stopped on the way out
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    progress = Progress()
    run = Run(ENGINES[options.engine], Load(options.requests, options.concurrency))
    outcomes: list[Outcome] = []
    try:
        _prepare(run, progress)
        reference = None
        for arm in arms:
            outcome, completions = run_arm(run, arm, reference, progress)
            reference = reference or completions
            outcomes.append(outcome)
    except ServerError as error:
        print(f"scripts/demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("scripts/demo: interrupted; all servers are stopped", file=sys.stderr)
        return 130
    made = results_of(run, outcomes)
    show(made, progress.console)
    results = run.out / "results.json"
    results.write_text(json.dumps(made.model_dump(mode="python"), indent=2, default=str) + "\n")
    progress.say(f"JSON: {results.relative_to(ROOT)}")
    if "affinity" in arms:
        try:
            leave_advice(run.out, run.engine.name, progress.say)
        except ServerError as error:
            print(f"scripts/demo: {error}", file=sys.stderr)
            return 1
    return 0 if all(outcome.largest_logprob_difference < EQUAL for outcome in outcomes) else 1


def _prepare(run: Run, progress: Progress) -> None:
    """The demo's model and settings, and an empty folder for what the run leaves."""
    shutil.rmtree(run.out, ignore_errors=True)
    run.out.mkdir(parents=True)
    (run.out / "affinity.yaml").write_text(f"{CONFIG}state_directory: {run.out / 'state'}\n")
    progress.say("making a small MoE model with skewed and clustered routing")
    make_model(run.out / "model", MODEL)


if __name__ == "__main__":
    sys.exit(main())
