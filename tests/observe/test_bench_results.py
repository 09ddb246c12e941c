"""Results of both generators are read; any other file is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eplb_plugin import PluginError
from eplb_plugin.observe.bench_results import read_runs
from generators import sglang_result, vllm_result


def test_both_generators(tmp_path: Path) -> None:
    """The same figures by the same names; a JSON file, JSON lines, and a folder of both."""
    (tmp_path / "v.json").write_text(json.dumps(vllm_result()))
    (tmp_path / "s.jsonl").write_text("".join(json.dumps(sglang_result(qps)) + "\n" for qps in (4.0, 5.0)))
    (tmp_path / "v.pytorch.json").write_text("[]")
    (tmp_path / "notes.txt").write_text("not looked at")
    (vllm,), sglang = read_runs(tmp_path / "v.json"), read_runs(tmp_path / "s.jsonl")
    expected = {"ttft_p50_ms": 100.0, "tpot_p90_ms": 20.0, "itl_p95_ms": 30.0, "qps": 4.0}
    assert vllm.figures == sglang[0].figures == expected
    assert (vllm.generator, sglang[0].generator, len(sglang)) == ("vllm", "sglang", 2)
    assert (vllm.concurrency, vllm.completed, vllm.input_tokens) == (8, 64, 4096.0)
    assert [run.digest for run in read_runs(tmp_path)] == [*(run.digest for run in sglang), vllm.digest]


def test_open_loop_has_no_concurrency(tmp_path: Path) -> None:
    (tmp_path / "v.json").write_text(json.dumps(vllm_result(max_concurrency=None)))
    assert read_runs(tmp_path / "v.json")[0].concurrency is None


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "an empty file"),
        ("{", "cannot be read as a benchmark result"),
        ("\xff", "cannot be read as a benchmark result"),
        ("[" * 100_000, "cannot be read as a benchmark result"),
        ("[]", "another kind of JSON"),
        ('{"request_throughput": 1}', "another kind of JSON"),
        (json.dumps(vllm_result(completed=63)), "63 of 64 requests answered"),
        (json.dumps(vllm_result(failed=1)), "64 of 64 requests answered"),
        (json.dumps(sglang_result(completed=2, errors=["", "HTTP 503", ""])), "2 of 3 requests answered"),
        (json.dumps(vllm_result(request_throughput="fast")), "request_throughput: found fast"),
        (json.dumps(vllm_result(request_throughput=None)), "request_throughput: found nothing"),
        (json.dumps(vllm_result(p90_tpot_ms=float("nan"))), "p90_tpot_ms: found nan"),
        (json.dumps(vllm_result(p95_itl_ms=-1)), "p95_itl_ms: found -1"),
        (json.dumps(vllm_result(max_concurrency=2.5)), "max_concurrency: found 2.5"),
        (json.dumps(vllm_result(backend=["vllm"])), "backend: found list"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str, line: str) -> None:
    path = tmp_path / "r.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(PluginError) as caught:
        read_runs(path)
    assert str(caught.value).startswith(str(path))
    assert line in str(caught.value)


def test_missing_files_and_empty_folders_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.json", tmp_path):
        with pytest.raises(PluginError, match=r"missing\.json|no \.json or \.jsonl file"):
            read_runs(path)


def test_older_files_of_vllm_are_read(tmp_path: Path) -> None:
    """They do not name the kind of endpoint."""
    record = {name: value for name, value in vllm_result().items() if name != "endpoint_type"}
    (tmp_path / "v.json").write_text(json.dumps(record))
    assert read_runs(tmp_path / "v.json")[0].generator == "vllm"


def test_details_of_requests_that_were_all_answered_are_no_failure(tmp_path: Path) -> None:
    result = sglang_result()
    (tmp_path / "s.jsonl").write_text(json.dumps({**result, "errors": [""] * result["completed"]}))
    assert read_runs(tmp_path / "s.jsonl")[0].completed == result["completed"]
