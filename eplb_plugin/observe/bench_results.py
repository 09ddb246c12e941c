"""Read what the engines' own load generators write: `vllm bench serve` (JSON) and `sglang.bench_serving` (JSONL)."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..errors import PluginError, mismatch
from ..files import read_foreign

Value = str | int | float | bool | None

# our name -> keys that hold it, best first; both generators take them from the same definitions
FIGURES: Mapping[str, tuple[str, ...]] = {
    "ttft_p50_ms": ("p50_ttft_ms", "median_ttft_ms"),
    "tpot_p90_ms": ("p90_tpot_ms",),
    "itl_p95_ms": ("p95_itl_ms",),
    "qps": ("request_throughput",),
}
# in tables
HEADINGS = {"ttft_p50_ms": "P50 TTFT ms", "tpot_p90_ms": "P90 TPOT ms", "itl_p95_ms": "P95 ITL ms", "qps": "QPS"}
assert HEADINGS.keys() == FIGURES.keys()
REQUIRED = ("qps",)  # the percentiles depend on the generator's flags
SETTINGS: Mapping[str, tuple[str, ...]] = {
    "vllm": (
        "backend", "model_id", "tokenizer_id", "num_prompts", "request_rate", "burstiness", "max_concurrency",
        "ramp_up_strategy", "ramp_up_start_rps", "ramp_up_end_rps",
    ),
    "sglang": (
        "backend", "dataset_name", "request_rate", "max_concurrency", "sharegpt_output_len", "random_input_len",
        "random_output_len", "random_range_ratio",
    ),
}  # fmt: skip
MODELS = ("model_id", "tokenizer_id", "model_path")
_TAIL = re.compile(r"(?:p(\d+)|median)_(ttft|tpot|itl|e2el)_ms")
NOT_RESULTS = ".pytorch.json"  # vLLM can write the same figures once more under this name


@dataclass(frozen=True)
class Run:
    """One run of a load generator.

    settings: what must be equal in runs that are compared, as far as the record says it; figures: by the names of
    FIGURES, where reported; concurrency: bound on requests in flight, None = none; input_tokens, output_tokens: of all
    requests; digest: of the whole record, by which a second copy of the file is told; latencies: ms by metric and
    percentile, all that are reported.
    """

    file: str
    generator: Literal["vllm", "sglang"]
    concurrency: int | None
    completed: int
    input_tokens: float
    output_tokens: float
    settings: Mapping[str, Value]
    figures: Mapping[str, float]
    digest: str
    latencies: Mapping[str, Mapping[int, float]] = field(default_factory=dict)


def read_runs(path: str | os.PathLike[str]) -> list[Run]:
    """Every run in a file, or in all .json and .jsonl files of a folder. PluginError in one line on anything else."""
    folder = Path(path)
    if not folder.is_dir():
        return _of_file(path)
    files = sorted(file for file in folder.iterdir() if file.suffix in (".json", ".jsonl"))
    runs = [run for file in files if not file.name.endswith(NOT_RESULTS) for run in _of_file(file)]
    if not runs:
        raise mismatch(
            str(path), found="no .json or .jsonl file", expected="benchmark results", fix="name their folder"
        )
    return runs


def _of_file(path: str | os.PathLike[str]) -> list[Run]:
    data = read_foreign(path, "benchmark result")
    try:
        text = data.decode()
        try:
            records = [json.loads(text)]
        except ValueError:  # one record a line: sglang.bench_serving, vllm bench serve --append-result
            records = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (ValueError, RecursionError) as error:
        what = f"{path}: cannot be read as a benchmark result ({error})"
        raise PluginError(f"{what}; fix: run the benchmark again") from None
    if not records:
        raise mismatch(str(path), found="an empty file", expected="a benchmark result", fix="run the benchmark again")
    return [_run(str(path), record) for record in records]


def _run(path: str, record: Any) -> Run:
    generator = _generator(record)
    if generator is None:
        expected = "what `vllm bench serve --save-result` or `sglang.bench_serving --output-file` writes"
        raise mismatch(path, found="another kind of JSON", expected=expected, fix="pass their result files")
    figures = {}
    for name, keys in FIGURES.items():
        for key in keys:
            if record.get(key) is not None:
                figures[name] = _number(path, record, key)
                break
        else:
            if name in REQUIRED:
                fix = "run the benchmark again"
                raise mismatch(f"{path}: {keys[0]}", found="nothing", expected="a number", fix=fix)
    concurrency = record.get("max_concurrency")
    if concurrency is not None:
        concurrency = _count(path, record, "max_concurrency")
    completed = _count(path, record, "completed")
    _refuse_failures(path, record, completed)
    settings = {name: _plain(path, record, name) for name in SETTINGS[generator] if name in record}
    settings["requests"] = completed
    if generator == "sglang" and isinstance(record.get("server_info"), dict):
        settings["model_path"] = _plain(path, record["server_info"], "model_path")
    for name in MODELS:
        if settings.get(name, "") is None:  # no model at all: the record does not know it
            del settings[name]
    return Run(
        path, generator, concurrency, completed, _number(path, record, "total_input_tokens"),
        _number(path, record, "total_output_tokens"), settings, figures,
        hashlib.sha256(json.dumps(record, sort_keys=True).encode(errors="replace")).hexdigest(),
        _latencies(path, record),
    )  # fmt: skip


def _latencies(path: str, record: dict[str, Any]) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for key in sorted(record):
        named = _TAIL.fullmatch(key)
        if named and record[key] is not None:
            found.setdefault(named[2], {})[int(named[1] or 50)] = _number(path, record, key)
    return found


def _generator(record: Any) -> Literal["vllm", "sglang"] | None:
    if not isinstance(record, dict) or "request_throughput" not in record:
        return None
    if {"model_id", "num_prompts"} <= set(record):
        return "vllm"
    return "sglang" if {"dataset_name", "random_input_len", "backend"} <= set(record) else None


def _refuse_failures(path: str, record: dict[str, Any], completed: int) -> None:
    """vLLM counts them; SGLang's generator lists what went wrong, request by request, with --output-details."""
    errors = record.get("errors")
    wanted = record.get("num_prompts", len(errors) if isinstance(errors, list) else completed)
    failed = record.get("failed") or (isinstance(errors, list) and any(errors))
    if not completed or completed != wanted or failed:
        found = f"{completed} of {wanted} requests answered"
        raise mismatch(path, found=found, expected="all", fix="find out why in the server's log, and run it again")


def _number(path: str, record: dict[str, Any], key: str) -> float:
    value: Any = record.get(key)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < 1e18:  # NaN is neither
        fix = "run the benchmark again"
        raise mismatch(f"{path}: {key}", found=str(value)[:40], expected="a finite number >= 0", fix=fix)
    return float(value)


def _count(path: str, record: dict[str, Any], key: str) -> int:
    value = _number(path, record, key)
    if value != int(value):
        raise mismatch(f"{path}: {key}", found=value, expected="a whole number", fix="run the benchmark again")
    return int(value)


def _plain(path: str, record: dict[str, Any], key: str) -> Value:
    value = record.get(key)
    if value is None or isinstance(value, (str, int, float)):
        return value
    fix = "run the benchmark again"
    raise mismatch(f"{path}: {key}", found=type(value).__name__, expected="a plain value", fix=fix)
