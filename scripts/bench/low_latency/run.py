"""Start the ranks, show the tables, write the figures."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from dataclasses import asdict
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from torch.multiprocessing.spawn import start_processes

from eplb_plugin.errors import PluginError, mismatch
from eplb_plugin.workloads.families import FAMILIES

from .case import Case
from .tables import show
from .worker import measure

ROOT = Path(__file__).resolve().parents[3]
TIMEOUT = timedelta(minutes=10)
LAUNCHED = "TORCHELASTIC_RUN_ID"  # set by torchrun


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench_low_latency")
    parser.add_argument("--distribution", choices=sorted(FAMILIES), default="lognormal")
    parser.add_argument("--imbalance-factors", type=float, nargs="+", default=[1.0, 2.0, 3.0])
    parser.add_argument("--backend", choices=("auto", "reference", "deep_ep"), default="auto")
    parser.add_argument("--ranks", type=int, help="of the reference, default 4; deep_ep: one for each GPU")
    parser.add_argument("--tokens", type=int, help="of every rank")
    parser.add_argument("--hidden", type=int)
    parser.add_argument("--inter", type=int, help="intermediate size of an expert")
    parser.add_argument("--experts", type=int)
    parser.add_argument("--top-k", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "bench_low_latency.json")
    parser.add_argument("--json", action="store_true", help="print the JSON instead of the tables")
    return parser.parse_args()


def chosen_case(given: argparse.Namespace) -> Case:
    """DeepEP's own test sizes on GPUs; small ones on the reference. Raises PluginError where they do not fit."""
    able = find_spec("deep_ep") is not None and find_spec("deep_gemm") is not None and torch.cuda.is_available()
    if given.backend == "deep_ep" and not able:
        found, expected = "no such packages, or no GPU", "deep_ep, deep_gemm and GPUs"
        raise mismatch("--backend deep_ep", found=found, expected=expected, fix="--backend reference")
    real = able and given.backend != "reference"
    usual = (128, 7168, 2048, 288, 30) if real else (16, 512, 256, 64, 3)
    names = ("tokens", "hidden", "inter", "experts", "repeats")
    sizes = {name: getattr(given, name) or size for name, size in zip(names, usual, strict=True)}
    ranks = given.ranks or 4
    if real:
        ranks = int(os.environ["WORLD_SIZE"]) if LAUNCHED in os.environ else torch.cuda.device_count()
    if sizes["experts"] % (ranks * given.rounds):
        expected = f"a multiple of {ranks * given.rounds} ({ranks} ranks × {given.rounds} rounds)"
        raise mismatch("--experts", found=sizes["experts"], expected=expected, fix="change --experts or --rounds")
    return Case(
        real=real, ranks=ranks, top_k=given.top_k, distribution=given.distribution,
        factors=tuple(given.imbalance_factors), rounds=given.rounds, seed=given.seed, **sizes,
    )  # fmt: skip


def run_rank(rank: int, case: Case, folder: str | None) -> None:
    """folder: where local ranks meet and rank 0 leaves its figures; None: torchrun has told us."""
    torch.set_num_threads(1)
    if not case.real:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    else:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", rank)))
    meeting: dict[str, Any] = (
        {} if folder is None else {"init_method": f"file://{folder}/store", "rank": rank, "world_size": case.ranks}
    )
    dist.init_process_group("nccl" if case.real else "gloo", timeout=TIMEOUT, **meeting)
    results = measure(case)
    if results is not None and folder is not None:
        Path(folder, "results.json").write_text(json.dumps(results))
    elif results is not None:
        report(case, results, options())
    dist.destroy_process_group()


def report(case: Case, results: list[dict[str, Any]], given: argparse.Namespace) -> int:
    """1 if a schedule gave other bits than the unsplit layer."""
    text = json.dumps({"case": asdict(case), "results": results}, indent=2)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(text + "\n")
    if given.json:
        print(text)
    else:
        show(case, results, Console(width=180))
    return int(not all(same for entry in results for rank in entry["ranks"] for same in rank["same bits"].values()))


def main() -> int:
    given = options()
    try:
        case = chosen_case(given)
    except PluginError as error:
        sys.exit(f"bench_low_latency: {error}")
    if LAUNCHED in os.environ:
        run_rank(int(os.environ["RANK"]), case, None)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        start_processes(run_rank, args=(case, folder), nprocs=case.ranks, start_method="spawn")
        results = json.loads(Path(folder, "results.json").read_text())
    return report(case, results, given)


if __name__ == "__main__":
    sys.exit(main())
