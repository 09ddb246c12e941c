"""Held-out copies, balance, ingress and CPU time for every dispatch rule, balance tolerance and ingress tolerance."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from eplb_plugin import PlanOptions, RoutingStatistics, Topology, plan
from eplb_plugin.cli.judged import figures
from eplb_plugin.observe.judging import average, judge_draws
from eplb_plugin.workloads.routing import ClusteredRouter
from eplb_plugin.workloads.trace import read_window

ROOT = Path(__file__).resolve().parents[2]
RULES = ("hash", "nearest", "weighted", "cover")
BALANCE = (0.02, 0.0, 0.05, 0.1)  # tolerances; the first is the default
INGRESS = (0.02, 1.0)
TOKENS = 8192  # per window


class Traffic(NamedTuple):
    """topk_ids: [layers, tokens of two windows, k]."""

    name: str
    topk_ids: NDArray[np.int16]
    experts: int
    topology: Topology
    groups: int


def made_up(layers: int, quick: bool) -> Iterator[Traffic]:
    """Windows of clustered routers: few and many experts, more nodes, routing limited to groups as in DeepSeek-V3."""
    four, eight = Topology(4, 8, 5), Topology(8, 8, 5)
    limited = ClusteredRouter(layers, 256, 8, strength=2.0, skew=0.5, num_groups=8, top_groups=4)
    kinds = (
        ("128 experts, top-8", four, ClusteredRouter(layers, 128, 8, num_topics=32, strength=2.5, skew=0.8)),
        (
            "256 experts, top-8",
            Topology(4, 8, 9),
            ClusteredRouter(layers, 256, 8, num_topics=48, strength=2.0, skew=0.6),
        ),
        ("256 experts, top-8", eight, ClusteredRouter(layers, 256, 8, num_topics=48, strength=2.0, skew=0.6)),
        (
            "512 experts, top-10",
            Topology(4, 8, 18),
            ClusteredRouter(layers, 512, 10, num_topics=64, strength=2.0, skew=0.6),
        ),
        ("256 experts in 8 groups, 48 topics", Topology(4, 8, 9), replace(limited, num_topics=48, skew=0.3)),
        ("256 experts in 8 groups, 24 topics", Topology(4, 8, 9), limited),
        ("256 experts in 8 groups, 24 topics", Topology(18, 8, 2), limited),
    )
    for name, topology, router in kinds[:1] if quick else kinds:
        yield Traffic(name, router.window(2 * TOKENS), router.num_experts, topology, router.num_groups)


def recorded(files: list[Path], topology: Topology, groups: int) -> Iterator[Traffic]:
    for file in files:
        window = read_window(file)
        if window.sample is None:
            sys.exit(f"{file}: found no token sample, expected one; fix: record with a sample")
        yield Traffic(file.name, window.sample, window.num_experts, topology, groups)


def measure(traffic: Traffic, policy: Any, rule: Any, options: PlanOptions, draws: int) -> dict[str, float]:
    """Means over both directions; the time is that of the faster plan, so that nothing is compiled in it."""
    middle, scores, seconds = traffic.topk_ids.shape[1] // 2, [], []
    halves = traffic.topk_ids[:, :middle], traffic.topk_ids[:, middle:]
    for known, unseen in (halves, halves[::-1]):
        statistics = RoutingStatistics.from_topk(known, traffic.experts)
        began = time.process_time()
        made = plan(
            statistics, traffic.topology, policy=policy, dispatch=rule, num_groups=traffic.groups, options=options
        )
        seconds.append(time.process_time() - began)
        scores.append(judge_draws(unseen, made, draws, 0))
    return {**figures(average(scores)), "cpu_ms_per_layer": 1e3 * min(seconds) / len(traffic.topk_ids)}


def compare(traffic: Traffic, quick: bool, draws: int) -> list[dict[str, Any]]:
    """Vanilla first: the engines' placement under their own dispatch."""
    rows: list[dict[str, Any]] = [
        {"policy": "deepseek", "rule": "hash", **measure(traffic, "deepseek", "hash", PlanOptions(), draws)}
    ]
    for rule in RULES:
        settings = [(tolerance, INGRESS[0]) for tolerance in BALANCE] + [(BALANCE[0], INGRESS[1])]
        for balance, ingress in settings[:1] if quick else settings:
            options = PlanOptions(balance_tolerance=balance, ingress_tolerance=ingress)
            row = measure(traffic, "affinity", rule, options, draws)
            row["fewer_copies"] = 1.0 - row["cross_node_copies"] / rows[0]["cross_node_copies"]
            rows.append(
                {"policy": "affinity", "rule": rule, "balance_tolerance": balance, "ingress_tolerance": ingress, **row}
            )
    return rows


def show(traffic: Traffic, rows: list[dict[str, Any]], console: Console) -> None:
    topology = traffic.topology
    table = Table(
        title=f"{traffic.name} -> {topology.num_slots} slots, {topology.num_ranks} ranks, {topology.num_nodes} nodes"
    )
    for heading in (
        "policy, rule",
        "balance tol.",
        "ingress tol.",
        "copies / token",
        "",
        "balance",
        "ingress",
        "CPU ms / layer",
    ):
        table.add_column(heading, justify="left" if heading.startswith("policy") else "right")
    for row in rows:
        fewer = f"{-row['fewer_copies']:+.1%}" if "fewer_copies" in row else ""
        tolerances = [f"{row[name]:g}" if name in row else "" for name in ("balance_tolerance", "ingress_tolerance")]
        values = f"{row['cross_node_copies']:.3f}", fewer, f"{row['balancedness']:.3f}", f"{row['busiest_ingress']:.3f}"
        table.add_row(f"{row['policy']}, {row['rule']}", *tolerances, *values, f"{row['cpu_ms_per_layer']:.1f}")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench_affinity", description=__doc__)
    parser.add_argument("traces", nargs="*", type=Path, metavar="TRACE", help="instead of made-up traffic")
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--ranks-per-node", type=int, default=8)
    parser.add_argument("--slots-per-rank", type=int, default=5)
    parser.add_argument("--num-groups", type=int, default=1)
    parser.add_argument("--layers", type=int, default=4, help="of made-up traffic; 58 as in DeepSeek-V3 takes minutes")
    parser.add_argument("--draws", type=int, default=3, help="of the tokens' source ranks")
    parser.add_argument("--quick", action="store_true", help="one kind of traffic, default tolerances")
    parser.add_argument("--json", type=Path, default=ROOT / "out" / "bench_affinity.json", help="where results go")
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 120)
    topology = Topology(options.nodes, options.ranks_per_node, options.slots_per_rank)
    all_traffic = recorded(options.traces, topology, options.num_groups)
    results = []
    for traffic in all_traffic if options.traces else made_up(options.layers, options.quick):
        rows = compare(traffic, options.quick, options.draws)
        show(traffic, rows, console)
        ranks, nodes = traffic.topology.num_ranks, traffic.topology.num_nodes
        name = f"{traffic.name}, {ranks} ranks on {nodes} nodes"
        results.append({"traffic": name, "layers": len(traffic.topk_ids), "rows": rows})
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(results, indent=1) + "\n")
    console.print(f"Written: {options.json}", highlight=False)


if __name__ == "__main__":
    main()
