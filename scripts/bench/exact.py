"""Even ranks in every step: tables, which are even over a window, beside `exact`, which has the step's own counts.

Answers of a recording with even numbers are planned on, those with odd numbers judged. A trace that does not say which
tokens are one answer's (`sample` [answers' numbers by token]) has one in every 64 tokens.
  decode   a step has tokens of any answers, drawn at random
  prefill  every rank has one whole answer
Balancedness is of steps: mean load of ranks over the busiest one's, summed over steps and layers. Copies are nodes
beyond its own that a token is sent to. Time is CPU time of one thread, compiled beforehand, median of several.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from eplb_plugin import Plan, PlanOptions, RoutingStatistics, Topology, plan, route, route_step
from eplb_plugin.dispatch.exact.replicas import replicas_of
from eplb_plugin.dispatch.exact.rows import Seen, row_of_source
from eplb_plugin.dispatch.exact.step import count_step, solve_counts, wished_nodes
from eplb_plugin.workloads.routing import ClusteredRouter

from .output import ROOT, output_parser, put_out

ANSWER = 64  # tokens, where a trace does not say
SHAPES = (
    ("decode", Topology(2, 4, 5)),
    ("decode", Topology(4, 4, 4)),
    ("prefill", Topology(2, 4, 5)),
    ("prefill", Topology(2, 4, 6)),
)  # of at most as many experts as slots
LARGE = Topology(8, 8, 5)  # of 256 experts: what solving is timed at


class Step(NamedTuple):
    tokens: NDArray[np.int64]  # numbers in the recording
    sources: NDArray[np.int64]  # their ranks


class Arm(NamedTuple):
    name: str
    policy: Any
    dispatch: Any
    arranged: bool
    send: Callable[[NDArray[Any], NDArray[Any], Plan, int], NDArray[np.int32]]


def draw(ids: NDArray[Any], sources: NDArray[Any], made: Plan, layer: int) -> NDArray[np.int32]:
    """Quotas of the step that know no nodes, and every selection draws its replica by them: so SGLang's `lp` does,
    whose own solver needs a GPU of compute capability 9."""
    replicas = replicas_of(made.placement.phy2log[layer], made.topology)
    anywhere = np.full(ids.shape, made.topology.num_nodes, np.int32)
    counts, base = count_step(ids, sources, anywhere, replicas)
    quota = solve_counts(replicas, counts.sum(axis=0, dtype=np.int32), base)
    slots, rng = np.where(ids < 0, -1, replicas.only_slot[ids]).astype(np.int32), np.random.default_rng(layer)
    for row, expert in enumerate(replicas.expert):
        part, chosen = slice(*replicas.start[row : row + 2]), ids == expert
        if chosen.any():
            slots[chosen] = rng.choice(replicas.slot[part], chosen.sum(), p=quota[part] / quota[part].sum())
    return slots


ARMS = (
    Arm("vanilla: deepseek, hash", "deepseek", "hash", False, route),
    Arm("tables: affinity, weighted", "affinity", "weighted", False, route),
    Arm("tables: affinity, cover", "affinity", "cover", False, route),
    Arm("drawn: deepseek", "deepseek", "hash", False, draw),
    Arm("exact: deepseek", "deepseek", "hash", False, route_step),
    Arm("exact: affinity, cover", "affinity", "cover", False, route_step),
    Arm("exact: affinity, cover, arranged", "affinity", "cover", True, route_step),
)


def read(path: Path) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """-> ids [L, T, k], number of its answer for every token [T]."""
    with np.load(path) as arrays:
        if "topk_ids" not in arrays:
            sys.exit(f"{path}: found no topk_ids, expected rows of tokens [layers, tokens, k]; fix: record per token")
        ids = arrays["topk_ids"].astype(np.int32)
        if "sample" not in arrays:
            return ids, np.arange(ids.shape[1]) // ANSWER
        return ids, np.concatenate([[0], np.cumsum(np.diff(arrays["sample"].astype(np.int64)) != 0)])


def steps_of(kind: str, answers: NDArray[np.int64], half: int, ranks: int, options: Any) -> Iterator[Step]:
    """Of the answers with numbers of one half, in an order drawn by the seed."""
    rng, mine = np.random.default_rng([options.seed, half]), answers % 2 == half
    if kind == "decode":
        tokens = rng.permutation(np.flatnonzero(mine))
        for step in range(min(options.steps, len(tokens) // options.tokens)):
            yield Step(tokens[step * options.tokens :][: options.tokens], np.arange(options.tokens) % ranks)
        return
    numbers = rng.permutation(np.unique(answers[mine]))
    for step in range(min(options.steps, len(numbers) // ranks)):
        found = [np.flatnonzero(answers == number) for number in numbers[step * ranks :][:ranks]]
        yield Step(np.concatenate(found), np.repeat(np.arange(ranks), [len(tokens) for tokens in found]))


def judge(ids: NDArray[Any], steps: list[Step], made: Plan, arm: Arm) -> tuple[float, float]:
    """-> balancedness of steps, copies per token."""
    topology = made.topology
    mean, most, copies, tokens = 0.0, 0, 0, 0
    for layer in range(len(ids)):
        for step in steps:
            slots = arm.send(ids[layer, step.tokens], step.sources, made, layer)
            load = np.bincount(slots[slots >= 0] // topology.slots_per_rank, minlength=topology.num_ranks)
            node, own = topology.node_of_slot[slots], topology.node_of_rank[step.sources]
            mean, most, tokens = mean + load.mean(), most + int(load.max()), tokens + len(slots)
            copies += sum(
                int((((node == other) & (slots >= 0)).any(axis=1) & (own != other)).sum())
                for other in range(topology.num_nodes)
            )
    return mean / most, copies / tokens


def compare(path: Path, options: Any) -> Iterator[dict[str, Any]]:
    ids, answers = read(path)
    experts = int(ids.max()) + 1
    for kind, topology in SHAPES:
        if topology.num_slots < experts:
            continue
        seen, later = (list(steps_of(kind, answers, half, topology.num_ranks, options)) for half in (0, 1))
        if not seen or not later:
            sys.exit(f"{path}: found too few answers, expected one for each of {topology.num_ranks} ranks")
        rows = np.concatenate([step.tokens for step in seen])
        number = np.repeat(np.arange(len(seen)), [len(step.tokens) for step in seen])
        known = RoutingStatistics.from_topk(ids[:, rows], experts, steps=number)
        for arm in ARMS:
            choice = PlanOptions(exact=arm.arranged)
            made = plan(known, topology, policy=arm.policy, dispatch=arm.dispatch, options=choice)
            balance, copies = judge(ids, later, made, arm)
            yield {
                "trace": path.name, "steps": kind, "ranks": topology.num_ranks, "nodes": topology.num_nodes,
                "slots": topology.num_slots, "arm": arm.name, "balancedness": balance, "copies": copies,
            }  # fmt: skip


def timed(repeats: int) -> dict[str, float]:
    """Microseconds that one rank needs for a layer's quotas and for its own row, from the counts of all."""
    rows = ClusteredRouter(1, 256, 8).window(256 * LARGE.num_ranks, 0)
    made = plan(RoutingStatistics.from_topk(rows, 256), LARGE, policy="balanced", dispatch="hash")
    ids, sources = np.ascontiguousarray(rows[0], np.int32), np.arange(rows.shape[1], dtype=np.int32) % LARGE.num_ranks
    replicas = replicas_of(made.placement.phy2log[0], LARGE)
    counts, base = count_step(ids, sources, wished_nodes(ids, sources, replicas, False), replicas)
    whole, alone = counts.sum(axis=0, dtype=np.int32), np.arange(LARGE.num_ranks, dtype=np.int32)
    quota, seen = solve_counts(replicas, whole, base), Seen(counts, whole, counts[:5].sum(axis=0), 5, alone)
    return {
        "solve_us": _median_us(lambda: solve_counts(replicas, whole, base), repeats),
        "row_us": _median_us(lambda: row_of_source(replicas, quota, seen), repeats),
    }


def _median_us(call: Callable[[], Any], repeats: int) -> float:
    call()
    found = []
    for _ in range(repeats):
        began = time.thread_time()
        for _ in range(100):
            call()
        found.append(time.thread_time() - began)
    return 1e4 * statistics.median(found)


def show(results: dict[str, Any]) -> None:
    console = Console(width=None if sys.stdout.isatty() else 120)
    table = Table("trace", "steps", "ranks / nodes / slots", "arm", "balancedness", "copies")
    for row in results["rows"]:
        size = f"{row['ranks']} / {row['nodes']} / {row['slots']}"
        figures = f"{row['balancedness']:.3f}", f"{row['copies']:.3f}"
        table.add_row(row["trace"], row["steps"], size, row["arm"], *figures)
    console.print(table)
    console.print(
        f"One layer of 256 experts on {LARGE.num_ranks} ranks, {LARGE.num_slots} slots: "
        f"quotas {results['solve_us']:.0f} µs, a rank's own row {results['row_us']:.0f} µs of CPU"
    )


def main() -> int:
    parser = output_parser("bench_exact")
    parser.description = __doc__
    parser.add_argument("traces", nargs="*", type=Path, metavar="TRACE", default=[ROOT / "traces" / "code-1.npz"])
    parser.add_argument("--steps", type=int, default=40, help="most steps that are planned on, and judged")
    parser.add_argument("--tokens", type=int, default=256, help="of a decode step, of all ranks together")
    parser.add_argument("--repeats", type=int, default=7, help="of the timing")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rows = [row for path in options.traces for row in compare(path, options)]
    results = {"rows": rows, **timed(options.repeats)}
    return put_out(results, options, lambda: show(results))


if __name__ == "__main__":
    raise SystemExit(main())
