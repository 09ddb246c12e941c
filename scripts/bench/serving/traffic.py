"""What is sent in a round, and what the engine's own load generator reports of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eplb_plugin.bench.engine import METRICS, Load
from eplb_plugin.bench.vllm import Vllm

PERCENTILES = (50, 90, 95, 99, 100)


class RoundVllm(Vllm):
    """The load generator with sampling by seed: arms that are sent a round's requests decode the same tokens, so that
    their routing differs by placement alone."""

    def bench(self, model: Path, url: str, load: Load, result: Path) -> list[str]:
        words = super().bench(model, url, load, result)
        words += ["--metric-percentiles", ",".join(map(str, PERCENTILES))]
        words += ["--temperature", "1", "--extra-body", f'{{"seed": {load.seed}}}']
        return words

    def bench_figures(self, report: Mapping[str, Any]) -> dict[str, float]:
        figures = {f"{name}_p{share}_ms": report[f"p{share}_{name}_ms"] for name in METRICS for share in PERCENTILES}
        return {
            **figures,
            "itl_mean_ms": report["mean_itl_ms"],
            "seconds": report["duration"],
            "qps": report["request_throughput"],
            "output_tokens_per_second": report["output_throughput"],
            "input_tokens": report["total_input_tokens"],
            "output_tokens": report["total_output_tokens"],
            "completed": report["completed"],
        }


ROUND_VLLM = RoundVllm()
