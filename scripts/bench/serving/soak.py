"""`scripts/serve_bench --soak SECONDS`: one server under changing traffic, rebalancing all the time, its ranks stopped
and continued. Ends with exit code 1 on wrong output, a hang or growing memory.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from eplb_cpu_engines.meter import read_meter

from eplb_plugin.bench.engine import Completion, Eplb
from eplb_plugin.bench.engine import Layout as EngineLayout
from eplb_plugin.bench.progress import Progress
from eplb_plugin.bench.server import Server, ServerError
from eplb_plugin.bench.vllm import RUNNER_V1, VLLM
from eplb_plugin.files import write_atomic
from network.namespaces import Network, NetworkError
from serving.greedy import PROMPTS, complete, complete_all, largest_difference
from serving.nodes import NodesServer

from .arms import ARMS, Arm, Layout
from .options import layout
from .processes import grown, growth, of_session, ranks, stopped
from .subject import HELP, ROOT, checked_file, checked_model, emptied, prepared

ARM = "affinity-weighted"
SETTINGS = {"forecast_windows": 1}  # the newest window alone: more moves
EPLB_WINDOW, EPLB_STEPS = 32, 64  # a rebalance every few seconds
TOLERANCE = 1e-3  # of a log-probability against the reference
CURVE = 60  # points of a process's memory that are told
ANSWER_SECONDS = 90  # a request that takes longer, a rank's pause included, is a hang


@dataclass(frozen=True)
class Schedule:
    """Seconds: of the whole; until the next kind of traffic; between two pauses of a rank, and of a pause; between two
    samples of memory."""

    seconds: float
    kind: float = 180.0
    pause_every: float = 60.0
    pause: float = 5.0
    sample: float = 10.0
    clients: int = 8


@dataclass
class Findings:
    """problems: one line each; none = passed."""

    problems: list[str] = field(default_factory=list)
    requests: int = 0
    checks: int = 0
    largest_logprob_difference: float = 0.0
    kinds: list[str] = field(default_factory=list)
    pauses: list[str] = field(default_factory=list)
    rebalances: int = 0
    slots_moved: int = 0
    latencies: list[float] = field(default_factory=list)
    memory: dict[str, list[float]] = field(default_factory=dict)

    def report(self) -> dict[str, Any]:
        latencies = np.array(self.latencies or [0.0])
        memory = {
            name: {"first": samples[0], "last": samples[-1], "most": max(samples), "growth": growth(samples),
                   "curve": samples[:: -(-len(samples) // CURVE)]}
            for name, samples in self.memory.items()
        }  # fmt: skip
        percentiles = {f"p{share}": float(np.percentile(latencies, share)) for share in (50, 99, 100)}
        report = {key: value for key, value in vars(self).items() if key not in ("latencies", "memory")}
        return {**report, "seconds_per_request": percentiles, "memory_bytes": memory}


class Soak:
    """Threads against one server, until the time is over or something is wrong."""

    def __init__(
        self, server: Server, reference: list[Completion], kinds: dict[str, list[Any]], schedule: Schedule,
        progress: Progress,
    ) -> None:  # fmt: skip
        """kinds: name -> prompts, texts or token ids."""
        self._server, self._reference, self._kinds = server, reference, kinds
        self._schedule, self._progress = schedule, progress
        self._over, self._lock = threading.Event(), threading.Lock()
        self._kind = next(iter(kinds))
        self.findings = Findings()

    def run(self) -> Findings:
        jobs = [self._client] * self._schedule.clients + [self._checker, self._change_kinds, self._pause, self._sample]
        threads = [threading.Thread(target=self._guarded, args=(job, number)) for number, job in enumerate(jobs)]
        for thread in threads:
            thread.start()
        began, found = time.monotonic(), self.findings
        try:
            while (left := began + self._schedule.seconds - time.monotonic()) > 0 and not found.problems:
                self._over.wait(min(left, 10))
                if self._server.ended() is not None:
                    self._problem(f"the server ended: {self._server.tail(5)}")
                self._progress.say(
                    f"{time.monotonic() - began:.0f} s: {found.requests} requests, {found.checks} checks, "
                    f"{len(found.pauses)} pauses, traffic {self._kind}"
                )
        finally:
            self._over.set()
            for thread in threads:
                thread.join()
        if growing := grown(found.memory):
            self._problem(f"memory grows: {', '.join(growing)}")
        if not found.checks:
            self._problem("no output was checked")
        return found

    def _guarded(self, job: Any, number: int) -> None:
        """A thread that fails ends the run."""
        try:
            job(random.Random(number))
        except Exception as error:
            self._problem(f"{job.__name__.strip('_')}: {type(error).__name__}: {error}")

    def _problem(self, line: str) -> None:
        self.findings.problems.append(line)
        self._over.set()

    def _client(self, draw: random.Random) -> None:
        while not self._over.is_set():
            prompt = draw.choice(self._kinds[self._kind])
            body = {"model": str(self._server.model), "prompt": prompt, "max_tokens": draw.randint(8, 48),
                    "ignore_eos": True}  # fmt: skip
            began = time.monotonic()
            self._server.post("/v1/completions", body, timeout=ANSWER_SECONDS)
            with self._lock:
                self.findings.requests += 1
                self.findings.latencies.append(time.monotonic() - began)

    def _checker(self, draw: random.Random) -> None:
        """The prompts whose answers are known, among all others."""
        while not self._over.is_set():
            which = draw.randrange(len(PROMPTS))
            answer = complete(self._server, PROMPTS[which])
            difference = largest_difference([self._reference[which]], [answer])
            self.findings.checks += 1
            self.findings.largest_logprob_difference = max(self.findings.largest_logprob_difference, difference)
            if difference > TOLERANCE:
                self._problem(f"wrong output for prompt {which}: log-probabilities differ by {difference:g}")

    def _change_kinds(self, draw: random.Random) -> None:
        names = list(self._kinds)
        for turn in range(1_000_000):
            self._kind = names[turn % len(names)]
            self.findings.kinds.append(self._kind)
            if self._over.wait(self._schedule.kind):
                return

    def _pause(self, draw: random.Random) -> None:
        while not self._over.wait(self._schedule.pause_every):
            session = self._session()
            process = draw.choice(ranks(of_session(session)))
            self.findings.pauses.append(process.name)
            with stopped(process):
                self._over.wait(self._schedule.pause)

    def _sample(self, draw: random.Random) -> None:
        while not self._over.wait(self._schedule.sample):
            for process in of_session(self._session()):
                if (held := process.memory()) is not None:
                    self.findings.memory.setdefault(f"{process.name} ({process.pid})", []).append(held)

    def _session(self) -> int:
        assert self._server.process is not None
        return self._server.process.pid


def synthetic_kinds(count: int = 4, vocabulary: int = 2000, tokens: int = 150) -> dict[str, list[list[int]]]:
    """Random prompts, each kind of few tokens of its own: a model routes by token, so that other experts are busy."""
    kinds = {}
    for number in range(count):
        draw = random.Random(f"kind {number}")
        own = draw.sample(range(10, vocabulary), tokens)
        kinds[f"kind {number}"] = [[draw.choice(own) for _ in range(draw.randint(16, 96))] for _ in range(64)]
    return kinds


def kinds_of(files: Sequence[Path]) -> dict[str, list[Any]]:
    """The first turns of ShareGPT-format files, one kind a file."""
    kinds: dict[str, list[Any]] = {}
    for file in files:
        texts = [entry["conversations"][0]["value"] for entry in json.loads(file.read_text())]
        kinds[file.stem] = [text[:600] for text in texts]
    return kinds or dict(synthetic_kinds())


def reference_of(model: Path, out: Path) -> list[Completion]:
    """What one process without expert parallelism answers."""
    with Server(VLLM, model, VLLM.arguments(EngineLayout()), out / "reference.log", ranks=1) as server:
        return complete_all(server)


def soak(
    network: Network, layout: Layout, arm: Arm, model: Path, reference: list[Completion], kinds: dict[str, list[Any]],
    schedule: Schedule, out: Path, progress: Progress,
) -> Findings:  # fmt: skip
    """Start an arm's server, and run. Raises ServerError if it does not start."""
    config = out / "eplb.yaml"
    config.write_text(yaml.safe_dump({**SETTINGS, **dict(arm.server.settings or ()), **layout.settings}))
    eplb = Eplb(layout.redundant_experts(model, 0.25), EPLB_WINDOW, EPLB_STEPS)
    words = arm.server.arguments(eplb, config)
    environment = {"EPLB_METER_DIR": str(out / "meter"), "EPLB_METER_NODES": str(layout.nodes), **RUNNER_V1}
    progress.say("starting the server")
    server = NodesServer(
        network, model, words, out / "server.log", ranks_per_node=layout.ranks_per_node, environment=environment,
        progress=progress.running("server"),
    )  # fmt: skip
    with server:
        found = Soak(server, reference, kinds, schedule, progress).run()
    meter = read_meter(out / "meter")
    found.rebalances, found.slots_moved = meter["rebalances"], meter["slots_moved"]
    if arm.server.eplb and not found.problems and not found.slots_moved:
        found.problems.append("no expert moved: the run was too short to prove anything")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/serve_bench", description=__doc__)
    add = parser.add_argument
    add("--soak", type=float, required=True, metavar="SECONDS")
    add("--network", type=layout, default=Layout(2, 1), metavar="NODESxRANKS", help="default: 2x1")
    add("--arm", default=ARM, choices=[name for name, arm in ARMS.items() if not arm.server.takes_orders],
        help="none and vanilla: what memory does without the plugin (default: %(default)s)")  # fmt: skip
    add("--model", type=checked_model, help=HELP)
    add("--prompts", type=checked_file, nargs="*", default=[], help="ShareGPT-format files, one kind of text each")
    add("--rate", type=float, help="Mbit/s of every link (default: no limit)")
    add("--kind-seconds", type=float, default=180, help="until the next kind (default: %(default)s)")
    add("--pause-every", type=float, default=60, help="seconds between pauses of a rank (default: %(default)s)")
    add("--pause-seconds", type=float, default=5, help="(default: %(default)s)")
    add("--out", type=Path, default=ROOT / "out" / "soak", help="(default: %(default)s)")
    given = parser.parse_args()
    if min(given.soak, given.kind_seconds, given.pause_every, given.pause_seconds, given.rate or 1.0) <= 0:
        parser.error("found a number that is not positive, expected seconds and Mbit/s")
    out = given.out.resolve()
    schedule = Schedule(given.soak, given.kind_seconds, given.pause_every, given.pause_seconds)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    progress = Progress()
    try:
        with Network(given.network.nodes) as network:
            emptied(out)
            subject = prepared(out, given.model, given.prompts, progress.say)
            progress.say("asking a single process for the reference")
            reference = reference_of(subject.model, out)
            network.limit(given.rate)
            found = soak(
                network, given.network, ARMS[given.arm], subject.model, reference, kinds_of(subject.prompts), schedule,
                out, progress,
            )  # fmt: skip
    except (NetworkError, ServerError) as error:
        print(f"scripts/serve_bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("scripts/serve_bench: interrupted; servers and namespaces are removed", file=sys.stderr)
        return 130
    report = {
        "arm": given.arm,
        "passed": not found.problems,
        "schedule": asdict(schedule),
        "rate": given.rate,
        **found.report(),
    }
    write_atomic(out / "soak.json", (json.dumps(report, indent=1) + "\n").encode())
    for problem in found.problems:
        print(f"scripts/serve_bench: {problem}", file=sys.stderr)
    progress.say(f"{'FAILED' if found.problems else 'passed'}; JSON: {out / 'soak.json'}")
    return 1 if found.problems else 0


if __name__ == "__main__":
    sys.exit(main())
