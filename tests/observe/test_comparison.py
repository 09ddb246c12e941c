"""Comparisons: exact, cautious, and refused where runs are not alike."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import combinations
from math import comb
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplb_plugin import PluginError
from eplb_plugin.observe.bench_results import Run, read_runs
from eplb_plugin.observe.comparison import compare, rank_sum_p, runs_needed
from generators import sglang_result, vllm_result
from strategies import QUICK

Result = Callable[..., dict[str, object]]


def runs(folder: Path, qps: list[float], result: Result = vllm_result, **changed: object) -> list[Run]:
    folder.mkdir(parents=True)
    for number, one in enumerate(qps):
        (folder / f"{number}.json").write_text(json.dumps(result(one, **changed)))
    return read_runs(folder)


def naive_p(first: list[int], second: list[int]) -> float:
    """Every split of the pooled runs, counted one by one."""
    pooled = np.array([*first, *second])
    ranks = np.array([(pooled < one).sum() + ((pooled == one).sum() + 1) / 2 for one in pooled])
    found = abs(ranks[: len(first)].sum() - len(first) * (len(pooled) + 1) / 2)
    sums = [ranks[list(taken)].sum() for taken in combinations(range(len(pooled)), len(first))]
    return float(np.mean([abs(one - len(first) * (len(pooled) + 1) / 2) >= found - 1e-9 for one in sums]))


@QUICK
@given(st.lists(st.integers(0, 6), min_size=1, max_size=5), st.lists(st.integers(0, 6), min_size=1, max_size=5))
def test_p_is_that_of_all_splits(first: list[int], second: list[int]) -> None:
    assert rank_sum_p(first, second) == pytest.approx(naive_p(first, second))


@pytest.mark.parametrize("count", [3, 4, 5, 8])
def test_least_p(count: int) -> None:
    """All of one arm above all of the other: the least p there is."""
    assert rank_sum_p(range(count), range(10, 10 + count)) == pytest.approx(2 / comb(2 * count, count))


def test_runs_needed() -> None:
    assert [runs_needed(0.05, comparisons) for comparisons in (1, 2, 4, 12)] == [4, 5, 5, 6]
    assert runs_needed(0.1, 1) == 3


def test_a_clear_difference_is_told(tmp_path: Path) -> None:
    """Five runs an arm, none overlapping: faster is better in every figure; medians, spread and ratio by hand."""
    slow, fast = runs(tmp_path / "a", [4.0, 4.1, 4.2, 3.9, 3.8]), runs(tmp_path / "b", [8.0, 8.2, 8.1, 7.9, 7.8])
    made = compare({"a": slow, "b": fast})
    assert {(cell.arm, cell.verdict) for cell in made.cells} == {("a", "reference"), ("b", "better")}
    (qps,) = [cell for cell in made.cells if cell.arm == "b" and cell.figure == "qps"]
    assert (qps.median, qps.least, qps.most, qps.ratio) == (8.0, 7.8, 8.2, 2.0)
    assert qps.p == pytest.approx(4 * 2 / 252)
    assert {cell.verdict for cell in compare({"b": fast, "a": slow}).cells} == {"reference", "worse"}


def test_three_runs_never_rank(tmp_path: Path) -> None:
    """However large the difference: three runs an arm would be as uneven by chance once in ten times."""
    made = compare({"a": runs(tmp_path / "a", [1.0, 1.1, 1.2]), "b": runs(tmp_path / "b", [9.0, 9.1, 9.2])})
    assert {cell.verdict for cell in made.cells} == {"reference", "not told apart"}
    assert made.runs_needed == 5


def test_noise_is_ranked_no_more_often_than_the_level_says(tmp_path: Path) -> None:
    """200 tables of arms that do not differ, two concurrencies: any false verdict in at most 5 %, within chance."""
    rng = np.random.default_rng(0)
    base = runs(tmp_path / "a", [4.0])[0]

    def arm() -> list[Run]:
        return [
            Run(**{**vars(base), "concurrency": point, "digest": str(rng.random()),
                   "figures": {name: rng.lognormal() for name in base.figures}})
            for point in (8, 16) for _ in range(6)
        ]  # fmt: skip

    false = [
        any(cell.verdict in ("better", "worse") for cell in compare({"a": arm(), "b": arm()}).cells) for _ in range(200)
    ]
    assert np.mean(false) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 200)


def test_holm_by_hand(tmp_path: Path) -> None:
    """Raw p of 2/252, three times 1: the least is multiplied by all four comparisons, the rest are capped at 1."""
    same = {"median_ttft_ms": 5.0, "p50_ttft_ms": 5.0, "p90_tpot_ms": 5.0, "p95_itl_ms": 5.0}
    made = compare({
        "a": runs(tmp_path / "a", [4.0, 4.1, 4.2, 3.9, 3.8], **same),
        "b": runs(tmp_path / "b", [8.0, 8.2, 8.1, 7.9, 7.8], **same),
    })  # fmt: skip
    assert {cell.figure: cell.p for cell in made.cells if cell.arm == "b"} == {
        "ttft_p50_ms": 1.0, "tpot_p90_ms": 1.0, "itl_p95_ms": 1.0, "qps": pytest.approx(4 * 2 / 252),
    }  # fmt: skip


@pytest.mark.parametrize("result", [vllm_result, sglang_result])
def test_figures_that_a_run_lacks_are_not_compared(tmp_path: Path, result: Result) -> None:
    arms = {name: runs(tmp_path / name, [start + 0.1 * i for i in range(5)], result, p95_itl_ms=None)
            for name, start in (("a", 1), ("b", 3))}  # fmt: skip
    made = compare(arms)
    assert made.comparisons == 3
    assert {cell.verdict for cell in made.cells if cell.figure == "itl_p95_ms"} == {"not reported"}


@pytest.mark.parametrize(
    ("result", "changed", "line"),
    [
        (vllm_result, {"model_id": "other"}, "found model_id 'other', expected 'm' as in"),
        (vllm_result, {"num_prompts": 32, "completed": 32}, "num_prompts 32"),
        (vllm_result, {"request_rate": 8.0}, "request_rate 8.0"),
        (vllm_result, {"total_output_tokens": 1800}, "28.1 output_tokens per request, expected 32.0"),
        (sglang_result, {"random_input_len": 128}, "random_input_len 128"),
        (sglang_result, {"completed": 63}, "requests 63"),
        (sglang_result, {"server_info": {"model_path": "n"}}, "model_path 'n'"),
    ],
)
def test_unequal_settings_are_refused(tmp_path: Path, result: Result, changed: dict[str, object], line: str) -> None:
    arms = {"a": runs(tmp_path / "a", [1, 2, 3], result), "b": runs(tmp_path / "b", [4, 5, 6], result, **changed)}
    with pytest.raises(PluginError) as caught:
        compare(arms)
    assert line in str(caught.value)


def test_too_few_mixed_or_copied_runs_are_refused(tmp_path: Path) -> None:
    three, two = runs(tmp_path / "a", [1, 2, 3]), runs(tmp_path / "b", [4, 5])
    with pytest.raises(PluginError, match="arm b: found 2 runs at concurrency 8, expected at least 3"):
        compare({"a": three, "b": two})
    with pytest.raises(PluginError, match="arm b: found 0 runs at concurrency 8"):
        compare({"a": three, "b": runs(tmp_path / "c", [4, 5, 6], concurrency=16)})
    with pytest.raises(PluginError, match="the same run in"):
        compare({"a": three, "b": three})
    with pytest.raises(PluginError, match="found results of sglang, expected vllm"):
        compare({"a": three, "b": runs(tmp_path / "d", [4, 5, 6], sglang_result)})
    with pytest.raises(PluginError, match="found 1 arm"):
        compare({"a": three})


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_what_a_file_does_not_say_is_named(tmp_path: Path, order: tuple[str, str]) -> None:
    """In whatever order the arms come: it is neither equal nor unequal. Nor is a model that is None in all of them."""
    arms = {
        "a": runs(tmp_path / "a", [1, 2, 3], sglang_result, server_info=None),
        "b": runs(tmp_path / "b", [4, 5, 6], sglang_result),
    }
    assert compare({name: arms[name] for name in order}).unknown == ["model_path"]
    nothing = {
        name: runs(
            tmp_path / f"none-{name}", [start, start + 1, start + 2], sglang_result, server_info={"model_path": None}
        )
        for name, start in (("a", 1), ("b", 4))
    }
    assert compare(nothing).unknown == ["model"]
    assert compare({name: runs(tmp_path / f"v{name}", [start, 2 * start, 3 * start])
                    for name, start in (("a", 1), ("b", 4))}).unknown == []  # fmt: skip


def test_settings_of_later_files_count_too(tmp_path: Path) -> None:
    """A setting that the first file does not say may still differ between the others."""
    first = runs(tmp_path / "a", [1, 2, 3], sglang_result, server_info=None)
    second = runs(tmp_path / "b", [4, 5, 6], sglang_result, server_info={"model_path": "m"})
    third = runs(tmp_path / "c", [7, 8, 9], sglang_result, server_info={"model_path": "n"})
    with pytest.raises(PluginError, match="found model_path 'n', expected 'm'"):
        compare({"a": first, "b": second, "c": third})
