"""The four tables of DeepEP's pull request 393, and the layer by every PEO schedule."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

from rich.console import Console
from rich.table import Table

from .case import Case

REFERENCE = "on the CPU reference of the protocol: it checks order and bits; its times say nothing of a GPU"
Entry = dict[str, Any]
Column = tuple[str, Callable[[Entry], str]]


def show(case: Case, results: list[Entry], console: Console) -> None:
    console.print(f"{case.ranks} ranks × {case.tokens} tokens, {case.experts} experts, top-{case.top_k}, hidden "
                  f"{case.hidden}, {case.distribution}; ran "
                  + ("on deep_ep and deep_gemm" if case.real else REFERENCE))  # fmt: skip
    _table(console, "1. Selections served per rank", results, _distribution(results))
    fp8_bytes, bf16_bytes = case.hidden + case.hidden // 128 * 4 + 16, 2 * case.hidden
    dispatch, combine = ("dispatch send", "dispatch recv"), ("combine send", "combine recv")
    total = _timing("", (*dispatch, *combine), fp8_bytes + bf16_bytes)
    _table(console, "2. Dispatch and combine, unsplit", results, total)
    parts = [*_timing("dispatch ", dispatch, fp8_bytes), *_timing("combine ", combine, bf16_bytes)]
    _table(console, "3. Dispatch, combine", results, parts)
    sides: list[Column] = [(f"{name}, ms", partial(_parts_of_ranks, (name,))) for name in (*dispatch, *combine)]
    _table(console, "4. SEND and RECV", results, sides)
    arms: list[Column] = [(name, partial(_layers_of_ranks, name)) for name in results[0]["ranks"][0]["layers"]]
    title = f"5. The whole layer, with its experts, ms; PEO in {case.rounds} rounds"
    _table(console, title, results, arms)
    differ = {
        name for entry in results for rank in entry["ranks"] for name, same in rank["same bits"].items() if not same
    }
    console.print(f"Not the bits of the unsplit layer: {', '.join(sorted(differ))}" if differ
                  else "Every schedule gave the bits of the unsplit layer on every rank.")  # fmt: skip


def _table(console: Console, title: str, results: list[Entry], columns: list[Column]) -> None:
    """Times are avg (min–max) over ranks of each rank's median."""
    table = Table("max/avg (actual)", *(name for name, _ in columns), title=title, title_justify="left")
    for entry in results:
        table.add_row(f"{entry['target']:.1f} ({entry['actual']:.2f})", *(cell(entry) for _, cell in columns))
    console.print(table)


def _distribution(results: list[Entry]) -> list[Column]:
    figures: dict[str, Callable[..., float]] = {
        "max": max,
        "min": min,
        "avg": statistics.mean,
        "median": statistics.median,
        "std": statistics.pstdev,
    }
    return [(name, partial(_of_selections, figure)) for name, figure in figures.items()]


def _of_selections(figure: Callable[..., float], entry: Entry) -> str:
    return f"{figure(entry['selections']):.1f}"


def _seconds(names: tuple[str, ...], entry: Entry) -> list[float]:
    """Of every rank, in these parts together."""
    return [sum(rank["parts"][name] for name in names) for rank in entry["ranks"]]


def _parts_of_ranks(names: tuple[str, ...], entry: Entry) -> str:
    return _spread(_seconds(names, entry))


def _layers_of_ranks(name: str, entry: Entry) -> str:
    return _spread([rank["layers"][name] for rank in entry["ranks"]])


def _timing(label: str, names: tuple[str, ...], row_bytes: int) -> list[Column]:
    """Bandwidth: bytes that a rank sends, over the mean time."""

    def bandwidth(entry: Entry) -> str:
        return f"{statistics.mean(entry['sent']) * row_bytes / statistics.mean(_seconds(names, entry)) / 1e9:.3f}"

    return [(f"{label}GB/s", bandwidth), (f"{label}ms", partial(_parts_of_ranks, names))]


def _spread(seconds: list[float]) -> str:
    low, high, mean = (1000.0 * figure(seconds) for figure in (min, max, statistics.mean))
    return f"{mean:.3f} ({low:.3f}–{high:.3f})"
