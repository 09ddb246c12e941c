"""vLLM: `vllm serve` and `vllm bench serve`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from .engine import ENVIRONMENT, METRICS, PERCENTILES, Completion, Engine, Eplb, Layout, Load

# vLLM's older model runner, for comparisons, and for benchmarks whose steps shall cost what their links do: V2, which
# GPUs run, is interpreted on a CPU.
RUNNER_V1 = {"VLLM_USE_V2_MODEL_RUNNER": "0"}
# fp32, because bf16 output changes with the placement (order of summation) on any engine; eager, because a tiny model
# gains nothing from compilation
_COMMON = ("--dtype", "float32", "--enforce-eager", "--max-model-len", "1024", "--max-num-seqs", "32")


class Vllm(Engine):
    name = "vllm"
    title = "vLLM"
    arms: ClassVar = {
        "none": "no EPLB",
        "vanilla_sync": "vanilla EPLB (sync)",
        "vanilla": "vanilla EPLB (async)",
        "affinity": "eplb_plugin, affinity",
    }

    def serve(self, model: Path, port: int) -> list[str]:
        return [_program(), "serve", str(model), "--host", "127.0.0.1", "--port", str(port)]

    def serve_part(self, model: Path, port: int, head: str, first: int, local: int, ranks: int) -> list[str]:
        """The command of one node of a data-parallel server: ranks first to first + local of all `ranks`.

        head: the first node's address; only there an API server answers, on all its addresses.
        """
        words = [_program(), "serve", str(model), "--data-parallel-size", str(ranks)]
        words += ["--data-parallel-size-local", str(local), "--data-parallel-address", head]
        words += ["--data-parallel-rpc-port", str(port + 1)]
        if first:
            return [*words, "--headless", "--data-parallel-start-rank", str(first)]
        return [*words, "--host", "0.0.0.0", "--port", str(port), "--api-server-count", "1"]

    def environment(self, bind: str) -> dict[str, str]:
        return {
            **ENVIRONMENT,
            "VLLM_HOST_IP": "127.0.0.1",
            "VLLM_CPU_OMP_THREADS_BIND": bind,
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_NO_USAGE_STATS": "1",
        }

    def arguments(self, layout: Layout, eplb: Eplb | None = None) -> list[str]:
        words = list(_COMMON)
        if layout.ranks > 1:
            words += ["--tensor-parallel-size", str(layout.tensor_parallel)]
            words += ["--data-parallel-size", str(layout.data_parallel)]
            words += ["--enable-expert-parallel", "--api-server-count", "1"]
        return words + (self.eplb_arguments(eplb) if eplb else [])

    def node_arguments(self, eplb: Eplb | None = None) -> list[str]:
        """The same for `serve_part`, whose ranks are data-parallel."""
        return [*_COMMON, "--enable-expert-parallel", *(self.eplb_arguments(eplb) if eplb else [])]

    def eplb_arguments(self, eplb: Eplb) -> list[str]:
        words = ["--enable-eplb", "--eplb-config.num_redundant_experts", str(eplb.redundant_experts)]
        if eplb.window_size is not None:
            words += ["--eplb-config.window_size", str(eplb.window_size)]
        if eplb.step_interval is not None:
            words += ["--eplb-config.step_interval", str(eplb.step_interval)]
        return [*words, "--eplb-config.use_async", str(eplb.use_async).lower()]

    def plugin_arguments(self, config: Path) -> list[str]:
        return ["--eplb-plugin-config", str(config)]

    def completion_request(self, model: Path, prompt: list[int], tokens: int) -> tuple[str, dict[str, Any]]:
        return "/v1/completions", {
            "model": str(model),
            "prompt": prompt,
            "max_tokens": tokens,
            "temperature": 0,
            "logprobs": 1,
            "ignore_eos": True,
            "return_token_ids": True,
        }

    def completion(self, answer: Mapping[str, Any]) -> Completion:
        choice = answer["choices"][0]
        return Completion(tuple(choice["token_ids"]), tuple(choice["logprobs"]["token_logprobs"]))

    def bench(self, model: Path, url: str, load: Load, result: Path) -> list[str]:
        prompts = ["--dataset-name", "sharegpt", "--dataset-path", str(load.dataset)]
        if load.dataset is None:
            prompts = ["--dataset-name", "random", "--random-input-len", str(load.input_tokens)]
            prompts += ["--random-output-len", str(load.output_tokens)]
        return [
            _program(), "bench", "serve", "--backend", "vllm", "--base-url", url, "--model", str(model), *prompts,
            "--num-prompts", str(load.requests), "--max-concurrency", str(load.concurrency),
            "--ignore-eos", "--seed", str(load.seed), "--disable-tqdm",
            "--percentile-metrics", ",".join(METRICS), "--metric-percentiles", ",".join(map(str, PERCENTILES)),
            "--save-result", "--result-dir", str(result.parent), "--result-filename", result.name,
        ]  # fmt: skip

    def bench_figures(self, report: Mapping[str, Any]) -> dict[str, float]:
        figures = {f"{name}_p{share}": report[f"p{share}_{name}_ms"] for name in METRICS for share in PERCENTILES}
        return {
            **figures,
            "output_tokens_per_second": report["output_throughput"],
            "completed": report["completed"],
        }


def _program() -> str:
    return str(Path(sys.executable).with_name("vllm"))


VLLM = Vllm()
