"""CPU time and held-out quality of policy `affinity` by dispatch rule and effort, from nothing and from an old plan."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from eplb_plugin import Plan, PlanOptions, RoutingStatistics, Topology, plan, resplit
from eplb_plugin.cli.judged import figures
from eplb_plugin.observe.judging import judge_draws
from eplb_plugin.plan_types import Effort
from eplb_plugin.workloads.routing import ClusteredRouter

from .output import output_parser, put_out

TOPOLOGY = Topology(4, 8, 9)
EXPERTS, TOP_K, TOKENS, V3_LAYERS = 256, 8, 8192, 58
RULES = ("hash", "weighted", "cover")
EFFORTS: tuple[Effort, ...] = ("thorough", "fast")
BUDGET = 28  # moved slots a layer in repairs: a tenth
DRIFT = 0.2  # of the router's topics between the plan and its repair
DRAWS = 3  # of the tokens' source ranks


def measure(layers: int, tokens: int, repeats: int) -> list[dict[str, Any]]:
    """Rows: vanilla, then for every rule both efforts' full solve and repair, and the re-split of a thorough plan.

    cpu_ms: of one thread, for V3_LAYERS layers, median of `repeats` after one that is not counted. part_of_gain: of the
    copies that the thorough full solve saves against vanilla.
    """
    router = ClusteredRouter(layers, EXPERTS, TOP_K, num_topics=24, strength=1.6, skew=0.5)
    known, unseen = router.window(tokens, 0), router.window(tokens, 1)
    drifted = router.drifted(DRIFT)
    seen = RoutingStatistics.from_topk(known, EXPERTS)
    newer, newest = RoutingStatistics.from_topk(drifted.window(tokens, 2), EXPERTS), drifted.window(tokens, 3)

    def timed(kind: str, rule: str, effort: str, judged: Any, make: Callable[[], Plan]) -> tuple[Plan, dict[str, Any]]:
        made, seconds = make(), []
        for _ in range(repeats):
            began = time.thread_time()
            made = make()
            seconds.append(time.thread_time() - began)
        row = {"kind": kind, "rule": rule, "effort": effort, "cpu_ms": 1e3 * median(seconds) * V3_LAYERS / layers}
        return made, row | figures(judge_draws(judged, made, DRAWS, 0))

    def vanilla() -> Plan:
        return plan(seen, TOPOLOGY, policy="deepseek", dispatch="hash")

    rows = [timed("full", "hash", "vanilla", unseen, vanilla)[1]]
    for rule in RULES:
        solved: dict[str, Plan] = {}
        for effort in EFFORTS:
            options = PlanOptions(effort=effort)

            def full(rule: Any = rule, options: PlanOptions = options) -> Plan:
                return plan(seen, TOPOLOGY, dispatch=rule, options=options)

            solved[effort], row = timed("full", rule, effort, unseen, full)
            rows.append(row)
        saved = rows[0]["cross_node_copies"] - rows[-2]["cross_node_copies"]
        rows[-1]["part_of_gain"] = (rows[0]["cross_node_copies"] - rows[-1]["cross_node_copies"]) / saved
        old = solved["thorough"]
        for effort in EFFORTS:
            options = PlanOptions(effort=effort, max_moved_slots=BUDGET)

            def repair(rule: Any = rule, options: PlanOptions = options, old: Plan = old) -> Plan:
                return plan(newer, TOPOLOGY, dispatch=rule, previous=old, options=options)

            rows.append(timed("repair", rule, effort, newest, repair)[1])
        if rule != "hash":  # which has no weights
            loads = RoutingStatistics(newer.load)
            rows.append(timed("re-split", rule, "", newest, partial(resplit, old, loads))[1])
    return rows


def show(rows: list[dict[str, Any]], layers: int) -> None:
    console = Console(width=None if sys.stdout.isatty() else 120)
    table = Table(title=f"{V3_LAYERS} layers x {EXPERTS} experts -> {TOPOLOGY.num_slots} slots, 32 ranks, 4 nodes")
    for name in ("", "rule", "effort", "CPU ms", "copies / token", "balance", "part of the gain"):
        table.add_column(name, justify="left" if name in ("", "rule", "effort") else "right")
    for row in rows:
        part = f"{row['part_of_gain']:.0%}" if "part_of_gain" in row else ""
        cells = f"{row['cpu_ms']:.0f}", f"{row['cross_node_copies']:.3f}", f"{row['balancedness']:.3f}", part
        table.add_row(row["kind"], row["rule"], row["effort"], *cells)
    console.print(table)
    console.print(f"Measured on {layers} layers, one thread, held-out windows.", highlight=False)


def main() -> int:
    parser = output_parser("bench_effort")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=TOKENS, help="of a window (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    rows = measure(options.layers, options.tokens, options.repeats)
    return put_out({"layers": options.layers, "rows": rows}, options, lambda: show(rows, options.layers))


if __name__ == "__main__":
    sys.exit(main())
