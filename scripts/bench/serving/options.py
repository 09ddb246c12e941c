"""The options of `scripts/serve_bench --network`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eplb_plugin.errors import PluginError, mismatch
from eplb_plugin.settings.config import load_config

from .arms import ARMS, Layout
from .conditions import checked_rate
from .subject import HELP, ROOT, checked_file, checked_model

RATES = (
    "Mbit/s of every link, comma-separated: none (no limit), rule (a step without limits takes at most 1/3 of a "
    "limited one), rule*2, rule/2, or a number"
)
STEPS = 256, 512  # window and interval, if nobody names them
DEFAULT_ARMS = "placed-vanilla,placed-engine,placed-balanced,placed-affinity-hash,placed-affinity-weighted"


@dataclass(frozen=True)
class Options:
    """See `--help`. model: as `subject.prepared` takes it. settings: the plugin's in all arms that have it."""

    layout: Layout
    arms: list[str]
    model: str | None
    prompts: list[Path]
    rates: list[str]
    concurrency: list[int]
    rounds: int
    seconds: float
    starts: int
    redundancy: float
    window_size: int
    step_interval: int
    input_tokens: int
    output_tokens: int
    settings: Mapping[str, Any]
    out: Path


def parse(words: list[str] | None = None) -> Options:
    """Ends the process with one line on bad input. Touches nothing."""
    parser = argparse.ArgumentParser(
        prog="scripts/serve_bench",
        description="Compare arms on vLLM servers whose ranks live on nodes of their own: network namespaces whose "
        "links have a limited rate. Needs root.",
        epilog=f"Arms: {', '.join(ARMS)}. Those named placed-* are placements on one running server, which is the "
        "fairer way to compare them; the others rebalance while they serve, each on its own server.",
    )
    add = parser.add_argument
    add("--network", required=True, type=layout, metavar="NODESxRANKS", help="2x1, 4x1, 2x2 …")
    add("--arms", default=DEFAULT_ARMS, help="the first is what others are compared with (default: %(default)s)")
    add("--model", type=checked_model, help=HELP)
    add("--prompts", type=checked_file, nargs="*", default=[], help="ShareGPT-format files, a kind of text each")
    add("--rates", default="none,rule", help=f"{RATES} (default: %(default)s)")
    add("--concurrency", default="16", help="requests in flight, comma-separated (default: %(default)s)")
    add("--rounds", type=int, default=4, help="per server start (default: %(default)s)")
    add("--seconds", type=float, default=30, help="of an arm's part of a round (default: %(default)s)")
    add("--starts", type=int, default=3, help="of every server (default: %(default)s)")
    add("--redundancy", type=float, default=0.125, help="redundant experts, share of all (default: %(default)s)")
    add("--window-size", type=int, help=f"of arms that rebalance, engine steps (default: --config's, or {STEPS[0]})")
    add("--step-interval", type=int, help=f"of arms that rebalance, engine steps (default: --config's, or {STEPS[1]})")
    add("--input-tokens", type=int, default=64, help="of random prompts (default: %(default)s)")
    add("--output-tokens", type=int, default=32, help="likewise (default: %(default)s)")
    add("--config", type=Path, help="the plugin's settings, of which an arm replaces policy, dispatch and topology")
    add("--out", type=Path, default=ROOT / "out" / "serve_bench", help="emptied before (default: %(default)s)")
    given = parser.parse_args(words)
    try:
        settings = {} if given.config is None else load_config(given.config).model_dump(mode="json", exclude_unset=True)
        arms, rates = given.arms.split(","), [checked_rate(word) for word in given.rates.split(",")]
        concurrency = [int(word) for word in given.concurrency.split(",")]
        window_size, step_interval = _steps(settings, given.window_size, given.step_interval)
    except (PluginError, ValueError) as error:
        parser.error(str(error))
    if unknown := [name for name in arms if name not in ARMS]:
        parser.error(f"--arms: found {', '.join(unknown)}, expected some of {', '.join(ARMS)}")
    if len(set(arms)) < len(arms):
        parser.error("--arms: found an arm twice, expected each once")
    counts = [given.rounds, given.starts, given.output_tokens, given.input_tokens, step_interval, *concurrency]
    if min(counts) < 1 or given.seconds <= 0 or not 0 <= given.redundancy <= 4:
        parser.error("found a number that is not positive, expected >= 1 (and --redundancy 0..4)")
    return Options(
        given.network, arms, given.model, given.prompts, rates, concurrency, given.rounds,
        given.seconds, given.starts, given.redundancy, window_size, step_interval, given.input_tokens,
        given.output_tokens, settings, given.out.resolve(),
    )  # fmt: skip


def _steps(settings: Mapping[str, Any], *given: int | None) -> tuple[int, int]:
    """Window and interval: those of the settings hold for the engine's own EPLB, too. Raises PluginError."""
    if "num_redundant_experts" in settings:
        found, fix = "num_redundant_experts", "leave it out"
        raise mismatch("--config", found=found, expected="--redundancy, which holds for all arms", fix=fix)
    steps = []
    for name, asked, default in zip(("window_size", "step_interval"), given, STEPS, strict=True):
        named = settings.get(name)
        if None not in (asked, named) and asked != named:
            expected = f"{named} as in --config: the same in every arm"
            raise mismatch(f"--{name.replace('_', '-')}", found=asked, expected=expected, fix="leave one of them out")
        steps.append(next(one for one in (asked, named, default) if one is not None))
    return steps[0], steps[1]


def layout(text: str) -> Layout:
    """For argparse."""
    try:
        return Layout.of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
