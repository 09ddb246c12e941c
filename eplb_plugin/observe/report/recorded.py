"""What was recorded: tokens, layers, model, engine and settings, as far as the files say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from ...statistics import RoutingStatistics
from ..bench_results import Run
from .given import Given
from .markup import table

NOT_SHOWN = ("kind", "version")  # of the file itself


def of_recorded(given: Given) -> str:
    rows = [
        [f"window {escape(name)}", _window(one, given.headers.get(name, {}))] for name, one in given.windows.items()
    ]
    rows += [
        [f"placement {escape(name)}", f"{one.num_slots} slots for {one.num_experts} experts in {one.num_layers} layers"]
        for name, one in given.placements.items()
    ]
    rows += [[f"arm {escape(arm)}", _runs(runs)] for arm, runs in given.arms.items()]
    if given.rounds is not None:
        count = len({(one.condition, one.start, one.round) for one in given.rounds.rounds})
        rows.append(["paired rounds", f"{count}, reference {escape(given.rounds.reference)}"])
    if given.demo is not None:
        parts = {name: getattr(given.demo, name) for name in ("load", "eplb", "layout", "machine")}
        rows += [[f"demo: {name}", _words(values)] for name, values in parts.items()]
    if given.advice is not None:
        rows.append(["advice", f"from {escape(given.advice.recording)}"])
    if given.windows:
        rows.append(
            [
                "shown for",
                f"{given.view.nodes} nodes of {given.view.ranks_per_node} ranks, dispatch {given.view.dispatch}",
            ]
        )
    return table(["", "what the files say"], rows, "words") if rows else ""


def _window(window: RoutingStatistics, header: Mapping[str, Any]) -> str:
    tokens = int(window.num_tokens.max(initial=0))
    words = [f"{tokens:,} tokens" if tokens else f"{float(np.sum(window.load)):,.0f} selections"]
    layers = window.layer_ids
    which = f" ({layers[0]} to {layers[-1]})" if len(layers) > 1 else f" ({layers[0]})"
    words.append(f"{window.num_layers} MoE layers{which}")
    top = "" if window.sample is None else f", top-{window.sample.shape[2]}"
    words.append(f"{window.num_experts} experts{top}")
    if window.sample is not None:
        words.append(f"{window.sample.shape[1]:,} whole rows kept")
    if window.steps is not None:
        words.append(f"loads of {len(window.steps)} single steps")
    more = {name: value for name, value in header.items() if name not in NOT_SHOWN and value is not None}
    return "; ".join([*words, *([_words(more)] if more else [])])


def _runs(runs: Sequence[Run]) -> str:
    put, got = (sum(getattr(run, name) for run in runs) for name in ("input_tokens", "output_tokens"))
    settings: dict[str, list[str]] = {}
    for name, value in [pair for run in runs for pair in run.settings.items()]:
        if value is not None and str(value) not in settings.setdefault(name, []):
            settings[name].append(str(value))
    words = _words({name: " or ".join(values) for name, values in settings.items()})
    return f"{len(runs)} runs of {runs[0].generator}, {put:,.0f} input and {got:,.0f} output tokens; {words}"


def _words(values: Mapping[str, Any]) -> str:
    return escape(", ".join(f"{name.replace('_', ' ')} {value}" for name, value in values.items() if value is not None))
