"""SGLang: `sglang serve` or `python -m sglang.launch_server`, and `python -m sglang.bench_serving`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from .engine import ENVIRONMENT, METRICS, PERCENTILES, Completion, Engine, Eplb, Layout, Load


@dataclass(frozen=True)
class Sglang(Engine):
    name = "sglang"
    title = "SGLang"
    arms: ClassVar = {"none": "no EPLB", "vanilla": "vanilla EPLB", "affinity": "eplb_plugin, affinity"}

    launcher: bool = False  # start servers with `python -m sglang.launch_server` instead of `sglang serve`

    def serve(self, model: Path, port: int) -> list[str]:
        sglang = str(Path(sys.executable).with_name("sglang"))
        program = [sys.executable, "-m", "sglang.launch_server"] if self.launcher else [sglang, "serve"]
        return [*program, "--model-path", str(model), "--host", "127.0.0.1", "--port", str(port)]

    def environment(self, bind: str) -> dict[str, str]:
        return {
            **ENVIRONMENT,
            "SGLANG_USE_CPU_ENGINE": "1",
            "SGLANG_CPU_OMP_THREADS_BIND": bind,
            "OMP_NUM_THREADS": "1",
            "TORCHDYNAMO_DISABLE": "1",  # the first request would wait some twenty seconds for a C++ compiler
        }

    def arguments(self, layout: Layout, eplb: Eplb | None = None) -> list[str]:
        # fp32, because bf16 output changes with the placement (order of summation) on any engine; no prefix cache,
        # because the warm-up sends the prompts that are then measured.
        words = [
            "--device", "cpu", "--attention-backend", "torch_native", "--sampling-backend", "pytorch",
            "--grammar-backend", "none", "--disable-radix-cache", "--sleep-on-idle",
            "--mem-fraction-static", "0.8", "--max-total-tokens", "32768", "--context-length", "1024",
            "--max-running-requests", "32", "--dtype", "float32",
        ]  # fmt: skip
        if layout.data_parallel > 1:
            raise ValueError(f"found data_parallel={layout.data_parallel}, expected 1: not tried on CPUs")
        if layout.ranks > 1:
            words += ["--tp-size", str(layout.ranks), "--ep-size", str(layout.ranks)]
        return words + (self.eplb_arguments(eplb) if eplb else [])

    def eplb_arguments(self, eplb: Eplb) -> list[str]:
        words = ["--enable-eplb", "--ep-num-redundant-experts", str(eplb.redundant_experts)]
        if eplb.window_size is not None:
            words += ["--expert-distribution-recorder-buffer-size", str(eplb.window_size)]
        if eplb.step_interval is not None:
            words += ["--eplb-rebalance-num-iterations", str(eplb.step_interval)]
        return words

    def plugin_arguments(self, config: Path) -> list[str]:
        return ["--eplb-algorithm", "affinity", "--eplb-plugin-config", str(config)]

    def completion_request(self, model: Path, prompt: list[int], tokens: int) -> tuple[str, dict[str, Any]]:
        sampling = {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True}
        return "/generate", {"input_ids": prompt, "sampling_params": sampling, "return_logprob": True}

    def completion(self, answer: Mapping[str, Any]) -> Completion:
        chosen = answer["meta_info"]["output_token_logprobs"]  # [(log-probability, token, text)]
        return Completion(tuple(token for _, token, _ in chosen), tuple(logprob for logprob, _, _ in chosen))

    def bench(self, model: Path, url: str, load: Load, result: Path) -> list[str]:
        prompts = ["--dataset-name", "sharegpt", "--dataset-path", str(load.dataset)]
        if load.dataset is None:
            prompts = ["--dataset-name", "random-ids", "--random-range-ratio", "1"]
            prompts += ["--random-input-len", str(load.input_tokens), "--random-output-len", str(load.output_tokens)]
        return [
            sys.executable, "-m", "sglang.bench_serving", "--backend", "sglang", "--base-url", url,
            "--model", str(model), *prompts,
            "--num-prompts", str(load.requests), "--max-concurrency", str(load.concurrency),
            "--seed", str(load.seed), "--disable-tqdm", "--output-file", str(result),
        ]  # fmt: skip

    def bench_figures(self, report: Mapping[str, Any]) -> dict[str, float]:
        names = {share: "median" if share == 50 else f"p{share}" for share in PERCENTILES}
        figures = {f"{name}_p{share}": report[f"{names[share]}_{name}_ms"] for name in METRICS for share in names}
        return {
            **figures,
            "output_tokens_per_second": report["output_throughput"],
            "completed": report["completed"],
        }


SGLANG = Sglang()
