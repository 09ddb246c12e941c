"""`scripts/serve_bench --network 4x1`: arms on nodes with links of a limited rate, measured in paired rounds."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from eplb_plugin.bench.engine import Eplb, Load
from eplb_plugin.bench.load_generator import run_bench
from eplb_plugin.bench.progress import Progress
from eplb_plugin.bench.rounds import rotated
from eplb_plugin.bench.server import ServerError
from eplb_plugin.bench.vllm import RUNNER_V1
from network.namespaces import Network, NetworkError
from serving.greedy import complete, prompts
from serving.nodes import NodesServer

from .arms import ARMS, Arm, ServerKind
from .conditions import Condition, rate_of
from .figures import MeterMark, Shape, crossed, metered, round_figures
from .options import Options, parse
from .placements import Placements, switching_environment
from .rates import SHARE, corrected, rate_by_rule, rounded
from .results import Results
from .subject import Subject, emptied, prepared
from .traffic import ROUND_VLLM

PLANNED_WAVES = 6  # of requests of every kind, from which ordered placements are planned
IDLE_SECONDS = 5  # over which the traffic of a server without requests is counted


@dataclass
class _Running:
    """A server that is being measured."""

    server: NodesServer
    kind: ServerKind
    folder: Path
    start: int
    placements: Placements | None = None

    @property
    def meter(self) -> Path:
        return self.folder / "meter"

    @property
    def name(self) -> str:
        return f"{self.kind.name} {self.start}"


@dataclass
class Campaign:
    """One run of the benchmark. requests: of a round, by condition, the same for all arms and starts."""

    options: Options
    subject: Subject
    network: Network
    results: Results
    progress: Progress
    conditions: list[Condition] = field(default_factory=list)
    requests: dict[Condition, int] = field(default_factory=dict)

    def run(self) -> None:
        arms = [ARMS[name] for name in self.options.arms]
        kinds = list(dict.fromkeys(arm.server for arm in arms))
        for start in range(self.options.starts):
            for kind in rotated(kinds, start):
                with self._server(kind, start) as running:
                    self._rounds(running, [arm for arm in arms if arm.server == kind])

    @contextlib.contextmanager
    def _server(self, kind: ServerKind, start: int) -> Iterator[_Running]:
        options, layout = self.options, self.options.layout
        folder = options.out / f"{kind.name}-{start}"
        folder.mkdir(parents=True)
        config = folder / "eplb.yaml"
        config.write_text(yaml.safe_dump({**options.settings, **dict(kind.settings or ()), **layout.settings}))
        environment = {
            "EPLB_METER_DIR": str(folder / "meter"), "EPLB_METER_NODES": str(layout.nodes), "EPLB_METER_WINDOW": "8",
            **RUNNER_V1,
        }  # fmt: skip
        if kind.takes_orders:
            environment |= switching_environment(folder)
        self.network.limit(None)
        self.progress.say(f"[bold]{kind.name}[/], start {start}: starting the server")
        began = time.monotonic()
        server = NodesServer(
            self.network, self.subject.model, kind.arguments(self._eplb, config), folder / "server.log",
            ranks_per_node=layout.ranks_per_node, engine=ROUND_VLLM, environment=environment,
            progress=self.progress.running("server"),
        )  # fmt: skip
        with server:
            running = _Running(server, kind, folder, start)
            self._note("start_seconds", running.name, time.monotonic() - began)
            self.progress.say(f"ready after {time.monotonic() - began:.0f} s; warming up (discarded)")
            self._warm_up(running)
            if not self.conditions:
                self._fix_conditions(running)
            yield running

    @property
    def _eplb(self) -> Eplb:
        options = self.options
        redundant = options.layout.redundant_experts(self.subject.model, options.redundancy)
        return Eplb(redundant, options.window_size, options.step_interval)

    def _warm_up(self, running: _Running) -> None:
        """All kinds of prompts, without a limit: placements settle, and those that are ordered are planned from it."""
        waves = PLANNED_WAVES if running.kind.takes_orders else 2
        for number, chosen in enumerate(self.subject.prompts or [None]):
            load = replace(self._load(max(self.options.concurrency), 900_000 + number, waves), dataset=chosen)
            run_bench(
                running.server, load, running.folder / f"warmup{number}.json", self.progress.running("warming up")
            )
        before = self.network.traffic()
        time.sleep(IDLE_SECONDS)
        idle = crossed(before, self.network.traffic())["bytes"] / IDLE_SECONDS
        self._note("idle_bytes_per_second", running.name, idle)
        if running.kind.takes_orders:
            running.placements = Placements(running.folder, running.server, lambda: self._drive(running))
            first = running.placements.order("engine", "hash")  # ends the traffic that placements are planned from
            self._note("placements", running.name, {"engine hash": first})

    def _fix_conditions(self, running: _Running) -> None:
        """The rates, by the rule, from steps of the first server without a limit, and the first number in flight."""
        step, step_bytes = self._step(running, None)
        rate = rounded(rate_by_rule(step, step_bytes))
        found: dict[str, Any] = {
            "step_ms_without_limit": step * 1e3,
            "busiest_link_bytes_per_step": step_bytes,
            "tried": [],
        }
        for _ in range(3):
            limited, _bytes = self._step(running, rate)
            found["tried"].append({"rate": rate, "step_ms": limited * 1e3})
            self.progress.say(f"step {step * 1e3:.0f} ms without limit, {limited * 1e3:.0f} ms at {rate:g} Mbit/s")
            if corrected(rate, step, limited) == rate:
                break
            rate = rounded(corrected(rate, step, limited))
        found |= {"share": SHARE, "rate": rate}
        self.results.notes["rate_by_rule"] = found
        self.conditions = [
            Condition(rate_of(word, rate), concurrency)
            for word in self.options.rates
            for concurrency in self.options.concurrency
        ]
        self.progress.say("conditions: " + "; ".join(condition.name for condition in self.conditions))

    def _step(self, running: _Running, rate: float | None) -> tuple[float, float]:
        """Seconds of a step, and bytes of the busiest link in it."""
        self.network.limit(rate)
        bench, bytes_ = self._bench(running, self._load(self.options.concurrency[0], 800_000), "rate")
        step = bench["itl_mean_ms"] / 1e3
        return step, bytes_["busiest_link_bytes"] / bench["seconds"] * step

    def _rounds(self, running: _Running, arms: list[Arm]) -> None:
        for number in range(self.options.rounds):
            for arm in rotated(arms, number):
                if running.placements is not None and arm.placement is not None:
                    self.network.limit(None)  # what is ordered is no part of the figures
                    facts = running.placements.order(*arm.placement)
                    self.results.notes["placements"][running.name][" ".join(arm.placement)] = facts
                for condition in rotated(self.conditions, number):
                    self._round(running, arm, condition, number)

    def _round(self, running: _Running, arm: Arm, condition: Condition, number: int) -> None:
        self.network.limit(condition.rate)
        seed = 1000 * running.start + 10 * number + 1
        prompts = self.subject.prompts
        turn = running.start * self.options.rounds + number  # every kind is asked, however few they are
        chosen = prompts[turn % len(prompts)] if prompts else None
        load = replace(self._load(condition.concurrency, seed), dataset=chosen)
        if condition not in self.requests:
            rehearsal, _ = self._bench(running, load, "rehearsal")
            per_second = load.requests / rehearsal["seconds"]
            waves = max(1, round(self.options.seconds * per_second / condition.concurrency))
            self.requests[condition] = waves * condition.concurrency
        self._drive(running)
        load = replace(load, requests=self.requests[condition])
        mark = MeterMark.of(running.meter)
        bench, bytes_ = self._bench(running, load, f"{arm.name} {number} {condition.name}")
        shape = _shape(self.subject.model)
        figures = round_figures(bench, bytes_, metered(running.meter, mark), shape)
        self.results.add(
            arm=arm.name, condition=condition.name, start=running.start, round=number, server=running.name,
            figures=figures,
        )  # fmt: skip
        self.progress.say(
            f"{arm.name}, round {number}, {condition.name}: {figures['bytes_per_output_token']:.0f} bytes/token, "
            f"{figures['output_tokens_per_second']:.1f} tok/s, {bench['seconds']:.0f} s"
        )

    def _bench(self, running: _Running, load: Load, name: str) -> tuple[dict[str, float], dict[str, float]]:
        before = self.network.traffic()
        result = running.folder / (re.sub(r"\W+", "-", name) + ".json")
        bench = run_bench(running.server, load, result, self.progress.running(name))
        return bench, crossed(before, self.network.traffic())

    def _load(self, concurrency: int, seed: int, waves: int = 2) -> Load:
        """waves: of requests."""
        options = self.options
        return Load(waves * concurrency, concurrency, options.input_tokens, options.output_tokens, seed)

    def _drive(self, running: _Running) -> None:
        """A few requests outside of any measurement; returns when all are answered."""
        drive(running.server, max(self.options.concurrency))

    def _note(self, name: str, key: str, value: Any) -> None:
        self.results.notes.setdefault(name, {})[key] = value


def drive(server: NodesServer, clients: int) -> None:
    """One short wave of requests."""
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(lambda prompt: complete(server, prompt), prompts(clients, seed=3)))


def _shape(model: Path) -> Shape:
    config = json.loads((model / "config.json").read_text())
    return Shape(config["num_hidden_layers"] - config.get("first_k_dense_replace", 0), config["hidden_size"])


def main() -> int:
    options = parse()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    progress = Progress()
    results = Results(options.out / "results.json", {**asdict(options)}, options.arms[0])
    began = time.monotonic()
    try:
        with Network(options.layout.nodes) as network:
            emptied(options.out)
            subject = prepared(options.out, options.model, options.prompts, progress.say)
            results.notes |= {"model": str(subject.model), "requests": [file.stem for file in subject.prompts]}
            Campaign(options, subject, network, results, progress).run()
    except (NetworkError, ServerError, ValueError) as error:
        print(f"scripts/serve_bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("scripts/serve_bench: interrupted; servers and namespaces are removed", file=sys.stderr)
        return 130
    results.notes["minutes"] = (time.monotonic() - began) / 60
    results.write()
    results.show()
    progress.say(f"JSON: {results.path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
