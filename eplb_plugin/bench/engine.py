"""What the demo, the benchmarks and the tests need to know of an engine, in terms that hold for every engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

# What every server on CPU needs: loopback only, nothing fetched, no telemetry.
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "GLOO_SOCKET_IFNAME": "lo", "DO_NOT_TRACK": "1"}

PERCENTILES = (50, 90, 95, 99)
METRICS = ("ttft", "tpot", "itl")


@dataclass(frozen=True)
class Layout:
    """How ranks are laid out; expert parallelism spans all of them."""

    tensor_parallel: int = 1
    data_parallel: int = 1

    @property
    def ranks(self) -> int:
        return self.tensor_parallel * self.data_parallel


@dataclass(frozen=True)
class Eplb:
    """The engine's own EPLB settings, the same in every arm that has EPLB. None: what the engine takes by itself."""

    redundant_experts: int
    window_size: int | None = None
    step_interval: int | None = None
    use_async: bool = True  # where the engine knows both


@dataclass(frozen=True)
class Load:
    """Prompts in a closed loop: random ones of the given lengths, or those of `dataset`, a file in ShareGPT's format,
    with the lengths of its own answers.
    """

    requests: int
    concurrency: int
    input_tokens: int = 64
    output_tokens: int = 32
    seed: int = 1
    dataset: Path | None = None


@dataclass(frozen=True)
class Completion:
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]


class Engine(ABC):
    """One engine; its methods give words of command lines and read answers, and start nothing."""

    name: str
    title: str
    arms: ClassVar[
        Mapping[str, str]
    ]  # what is compared, by the name in a table: none, the engine's own EPLB, the plugin

    @abstractmethod
    def serve(self, model: Path, port: int) -> list[str]:
        """The command of a server on loopback."""

    @abstractmethod
    def environment(self, bind: str) -> dict[str, str]:
        """What servers and clients run with. bind: a core for every rank, "0|1"."""

    @abstractmethod
    def arguments(self, layout: Layout, eplb: Eplb | None = None) -> list[str]:
        """What a server of every arm is given, without the plugin's part."""

    @abstractmethod
    def eplb_arguments(self, eplb: Eplb) -> list[str]:
        """The engine's own EPLB."""

    @abstractmethod
    def plugin_arguments(self, config: Path) -> list[str]:
        """What the plugin needs beside the engine's own EPLB."""

    def arm_arguments(self, arm: str, layout: Layout, eplb: Eplb, config: Path) -> list[str]:
        """A server's arguments in one of `arms`."""
        eplb = replace(eplb, use_async=eplb.use_async and arm != "vanilla_sync")
        arguments = self.arguments(layout, None if arm == "none" else eplb)
        return arguments + (self.plugin_arguments(config) if arm == "affinity" else [])

    @abstractmethod
    def completion_request(self, model: Path, prompt: list[int], tokens: int) -> tuple[str, dict[str, Any]]:
        """Path and body that ask for a greedy completion of exactly `tokens` tokens with their log-probabilities."""

    @abstractmethod
    def completion(self, answer: Mapping[str, Any]) -> Completion: ...

    @abstractmethod
    def bench(self, model: Path, url: str, load: Load, result: Path) -> list[str]:
        """The command of the engine's own load generator, which writes one JSON document to `result`."""

    @abstractmethod
    def bench_figures(self, report: Mapping[str, Any]) -> dict[str, float]:
        """Latencies in ms (`ttft_p50` …), `output_tokens_per_second`, `completed` requests."""
