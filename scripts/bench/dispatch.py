"""Mapping and recording per layer call, tables, bytes and copies of every dispatch rule. No GPU is used or needed."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from eplb_plugin import Plan, RoutingStatistics, Topology, plan
from eplb_plugin.dispatch.buffers import Counters
from eplb_plugin.dispatch.cover import cover_maps
from eplb_plugin.dispatch.kernels import CoverTables, cover, record
from eplb_plugin.dispatch.tables import hashed_maps
from eplb_plugin.observe.judging import judge_draws
from eplb_plugin.recording.recorder import Recorder
from eplb_plugin.workloads.routing import ClusteredRouter
from eplb_plugin.workloads.trace import read_window

from .exact_calls import exact_rows, show_exact
from .timing import milliseconds

ROOT = Path(__file__).resolve().parents[2]
RULES = ("hash", "weighted", "cover")
LAYERS, EXPERTS, TOP_K, TOPOLOGY = 58, 256, 8, Topology(4, 8, 9)  # DeepSeek-V3 on 32 ranks with 32 redundant experts
PLANNED, TOKENS = 2, 8192  # layers that are planned, their plans repeated for all; tokens of a window
PASSED = 8  # layers of a timed forward pass: what a step costs once is shared by them
EXACT = ((256, TOPOLOGY), (256, Topology(8, 8, 5)))  # experts, and where they lie
BATCHES = (1, 8, 64, 512, 4096)
HIDDEN, INTERMEDIATE = 2048, 768  # of the experts whose products stand beside the recording, as in Qwen3-30B-A3B
Row = dict[str, Any]


def planned(rule: Any, router: ClusteredRouter, layers: int) -> Plan:
    statistics = RoutingStatistics.from_topk(router.window(TOKENS), EXPERTS)
    made = plan(statistics, TOPOLOGY, policy="affinity", dispatch=rule)
    rows = np.arange(layers) % router.num_layers
    weights = {name: getattr(made, name) for name in ("source_weights", "cover_weights")}
    chosen: dict[str, Any] = {name: part if part is None else part[..., rows, :] for name, part in weights.items()}
    placement = type(made.placement)(made.placement.phy2log[rows])
    return Plan(placement, TOPOLOGY, rule, made.replica_weights[rows], 0.0, **chosen)


def table_row(made: Plan, times: int) -> Row:
    """What is made and uploaded when all layers change, on one rank."""
    layers = range(made.placement.num_layers)

    def fill() -> list[np.ndarray]:
        parts: list[Any] = [*hashed_maps(made, [0])]
        return [*parts, *cover_maps(made, layers)] if made.dispatch == "cover" else parts

    size = sum(part.nbytes for part in fill())
    return {"rule": made.dispatch, "layers": len(layers), "ms": milliseconds(fill, times), "mib": size / 2**20}


def passes(made: Plan, ids: torch.Tensor) -> tuple[Callable[[], None], Callable[[], None]]:
    """A forward pass of PASSED layers, as a vLLM server on a CPU does it under a rule: mapping alone, and recorded."""
    from eplb_cpu_engines.vllm.routing import map_to_physical_and_record

    covers, layers = made.dispatch == "cover", range(PASSED)
    enabled, off, real = torch.tensor(True), torch.tensor(False), torch.tensor(len(ids), dtype=torch.int32)
    load = torch.zeros(PASSED, TOPOLOGY.num_slots, dtype=torch.int32)
    recorder = Recorder(PASSED, EXPERTS, TOP_K, len(ids), 256, torch.device("cpu"))
    counters = [Counters(*recorder.passing(layer), load[layer], enabled, enabled, enabled, real, 0) for layer in layers]
    rows, counts = (torch.from_numpy(part) for part in hashed_maps(made, [0], layers))
    if covers:
        held = CoverTables(made, [0], torch.device("cpu"))
        tables = [held.layer(layer) for layer in layers]

    def mapped() -> None:
        for layer in layers:
            if covers:
                cover(ids, tables[layer], counters[layer]._replace(enabled=off, slots_enabled=off))
            else:
                map_to_physical_and_record(ids, load[layer], rows[layer], counts[layer], enabled, real)

    def recorded() -> None:
        recorder.expect([len(ids)])
        for layer in layers:
            if covers:
                cover(ids, tables[layer], counters[layer])
            else:
                record(ids, counters[layer])
                map_to_physical_and_record(ids, load[layer], rows[layer], counts[layer], enabled, real)
        recorder.fold()

    return mapped, recorded


def expert_products(tokens: int) -> Callable[[], None]:
    """The matrix products of one MoE layer, every expert with the same weights (which flatters the caches)."""
    inner, outer = torch.rand(2 * INTERMEDIATE, HIDDEN), torch.rand(HIDDEN, INTERMEDIATE)
    parts = torch.rand(tokens * TOP_K, HIDDEN).chunk(min(EXPERTS, tokens * TOP_K))

    def run() -> None:
        for part in parts:
            gate, up = (part @ inner.T).chunk(2, dim=1)
            (torch.nn.functional.silu(gate) * up) @ outer.T

    return run


def call_rows(plans: dict[str, Plan], router: ClusteredRouter, times: int) -> list[Row]:
    rows = []
    for tokens in BATCHES:
        ids = torch.from_numpy(router.window(tokens, 7)[0].astype(np.int64))
        products = milliseconds(expert_products(tokens), 3) if tokens <= 512 else None
        for rule, made in plans.items():
            mapped, recorded = (milliseconds(call, times) / PASSED for call in passes(made, ids))
            row = {"rule": rule, "tokens": tokens, "map_ms": mapped, "record_ms": recorded - mapped}
            rows.append({**row, "experts_ms": products})
    return rows


def own_function(ids: torch.Tensor, times: int) -> Row:
    """vLLM's function as its package has it for this platform: on a CPU a stub, which the test bed replaces."""
    from vllm.model_executor.layers.fused_moe.router.base_router import eplb_map_to_physical_and_record as own

    nothing = torch.zeros(1, dtype=torch.int32)
    arguments = ids, nothing, torch.zeros(EXPERTS, 1, dtype=torch.int64), torch.ones(EXPERTS, dtype=torch.int64)
    maps = own(*arguments, torch.tensor(False)) is not ids
    return {"maps": maps, "ms": milliseconds(lambda: own(*arguments, torch.tensor(False)), times)}


def kernel_bytes(id_bytes: int = 8) -> Row:
    """Computed, per token and layer call: what one launch has to move, tables (held by the cache) left out."""
    pairs = TOP_K * (TOP_K + 1) // 2
    return {
        "least": 2 * TOP_K * id_bytes,
        "ids_and_slots": 2 * TOP_K * id_bytes,
        "sample_rows": 2 * TOP_K,
        "atomic_adds": 2 * TOP_K + pairs,
        "tables_looked_up": TOP_K * (8 + 4 + 2 * 4),
    }


def instructions(capability: int = 90) -> Row | None:
    """Lines of PTX by kind, compiled for a GPU that need not be there; None without Triton."""
    spec = find_spec("triton")
    if spec is None or spec.origin is None:
        return None
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # it warns where nobody says
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from eplb_plugin.dispatch.triton_kernels import COVER, pass_kernel

    types = {"ids": "*i64", "slots": "*i64", "nodes": "*i64", "rows": "*i16"}
    types |= {name: "*i1" for name in ("enabled", "pairs_enabled", "slots_enabled")}
    types |= {name: "*i32" for name in ("table", "counts", "copies", "load", "pairs", "slot_load", "real")}
    constants = {"K": TOP_K, "WIDTH": 8, "TOKENS": 16, "NODES": TOPOLOGY.num_nodes, "TASK": COVER.value}
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in pass_kernel.arg_names}
    made = triton.compile(ASTSource(pass_kernel, signature, constants), target=GPUTarget("cuda", capability, 32))
    lines = [line.split("//")[0].strip() for line in made.asm["ptx"].splitlines()]
    code = [line for line in lines if re.match(r"(@!?%\w+ )?[a-z][\w.]+ .*;$|ret;", line)]
    kinds = {"loads": r"ld\.global", "stores": r"st\.global", "atomics": r"(red|atom)\.global", "shared": r"\.shared"}
    counted = {kind: sum(re.search(mark, line) is not None for line in code) for kind, mark in kinds.items()}
    return {"capability": capability, "ptx_lines": len(code), **counted, "cubin_bytes": len(made.asm["cubin"])}


def copies_rows(topk_ids: np.ndarray, experts: int, topology: Topology, draws: int) -> list[Row]:
    """Planned on one half of the tokens, judged on the other; vanilla first."""
    half, rows = topk_ids.shape[1] // 2, []
    statistics = RoutingStatistics.from_topk(topk_ids[:, :half], experts)
    arms: list[tuple[Any, Any]] = [("deepseek", "hash"), *(("affinity", rule) for rule in RULES)]
    for policy, rule in arms:
        made = plan(statistics, topology, policy=policy, dispatch=rule)
        score = judge_draws(topk_ids[:, half:], made, draws, 0).mean()
        figures = {"copies_per_token": score.cross_node_copies, "balancedness": score.balancedness}
        rows.append({"policy": policy, "rule": rule, **figures})
    return rows


def show(results: Row, console: Console) -> None:
    def table(title: str, headings: list[str], rows: list[list[str]]) -> None:
        made = Table(title=title)
        for heading in headings:
            made.add_column(heading, justify="left" if heading == "rule" else "right")
        for row in rows:
            made.add_row(*row)
        console.print(made)

    calls = [
        [row["rule"], str(row["tokens"]), f"{1e3 * row['map_ms']:.0f}", f"{1e3 * row['record_ms']:.0f}",
         f"{row['record_ms'] / row['experts_ms']:.2%}" if row["experts_ms"] else "–"]
        for row in results["calls"]
    ]  # fmt: skip
    title = "One layer call, CPU time of one thread (hash and weighted: the test bed's torch mapping)"
    table(title, ["rule", "tokens", "map µs", "record µs", "of the experts' products"], calls)
    show_exact(results["exact"], console)
    made = [[row["rule"], str(row["layers"]), f"{row['ms']:.2f}", f"{row['mib']:.1f}"] for row in results["tables"]]
    table("Tables of one rank, all layers", ["rule", "layers", "ms", "MiB"], made)
    copies = [[f"{row['policy']}, {row['rule']}", f"{row['copies_per_token']:.3f}", f"{row['balancedness']:.3f}"]
              for row in results["copies"]]  # fmt: skip
    table(f"Held-out copies: {results['traffic']}", ["rule", "cross-node copies / token", "balancedness"], copies)
    own = results["own_function"]
    if own is not None:
        console.print(
            f"vLLM's own function here: {'maps' if own['maps'] else 'a stub that maps nothing'}, {own['ms']:.4f} ms"
        )
    console.print(f"Bytes per token of one launch (computed): {results['kernel_bytes']}")
    console.print(f"Triton kernel compiled, never run on a GPU: {results['instructions'] or 'no Triton here'}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench_dispatch", description=__doc__)
    parser.add_argument("trace", nargs="?", type=Path, metavar="TRACE", help="copies of recorded tokens")
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--ranks-per-node", type=int, default=8)
    parser.add_argument("--slots-per-rank", type=int, default=9)
    parser.add_argument("--draws", type=int, default=3, help="of the tokens' source ranks")
    parser.add_argument("--quick", action="store_true", help="few layers, few repetitions")
    parser.add_argument("--json", type=Path, default=ROOT / "out" / "bench_dispatch.json", help="where results go")
    options = parser.parse_args()
    torch.set_num_threads(1)
    times = 5 if options.quick else 31
    router = ClusteredRouter(1 if options.quick else PLANNED, EXPERTS, TOP_K, num_topics=48, strength=2.0, skew=0.6)
    topk_ids, experts, topology, traffic = router.window(2 * TOKENS), EXPERTS, TOPOLOGY, "256 experts, top-8, made up"
    if options.trace:
        window = read_window(options.trace)
        if window.sample is None:
            sys.exit(f"{options.trace}: found no token sample, expected one; fix: record with a sample")
        topk_ids, experts, traffic = window.sample, window.num_experts, options.trace.name
        topology = Topology(options.nodes, options.ranks_per_node, options.slots_per_rank)
    plans = {rule: planned(rule, router, LAYERS) for rule in RULES}
    has_vllm = find_spec("vllm") is not None
    results = {
        "calls": call_rows(plans, router, times) if has_vllm else [],
        "tables": [table_row(made, times) for made in plans.values()],
        "own_function": own_function(torch.from_numpy(router.window(64, 7)[0]), times) if has_vllm else None,
        "exact": exact_rows(EXACT, LAYERS, TOP_K, times),
        "kernel_bytes": kernel_bytes(),
        "instructions": instructions(),
        "traffic": traffic,
        "copies": copies_rows(topk_ids, experts, topology, options.draws),
    }
    show(results, Console(width=None if sys.stdout.isatty() else 120))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(results, indent=1) + "\n")
    print(f"Written: {options.json}")


if __name__ == "__main__":
    main()
