"""A process in a server's place, with a child as engines have one, and a load generator that only reports."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from eplb_plugin.bench.engine import Load
from eplb_plugin.bench.vllm import Vllm
from generators import vllm_result

STAND_IN = """
import http.server, os, pathlib, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
with open(sys.argv[1], "a") as children:
    children.write(f"{child.pid}\\n")
if sys.argv[3] == "dies":
    sys.exit("RuntimeError: no GPU here")
class Healthy(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *words):
        pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[2])), Healthy).serve_forever()
"""
RESULT = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text(sys.argv[2])"


class StandIn(Vllm):
    """A process in a server's place, which has a child as engines do; qps: what its load generator reports by arm."""

    def __init__(self, folder: Path, way: str, qps: dict[str, float]) -> None:
        self.children, self.way, self.qps = folder / "children", way, qps
        self.answered: int | None = None  # of the requests; None: all
        self.measured: list[str] = []

    def serve(self, model: Path, port: int) -> list[str]:
        return [sys.executable, "-c", STAND_IN, str(self.children), str(port), self.way]

    def bench(self, model: Path, url: str, load: Load, result: Path) -> list[str]:
        arm, run = result.parent.name, len(self.measured)
        self.measured.append(f"{arm}/{result.stem}")
        report = vllm_result(self.qps.get(arm, 1.0) + run / 100, load.concurrency, num_prompts=load.requests)
        report |= {f"p{share}_{name}_ms": 1.0 for share in (50, 90, 95, 99) for name in ("ttft", "tpot", "itl")}
        report |= {
            "completed": load.requests if self.answered is None else self.answered,
            "total_input_tokens": load.requests,
            "total_output_tokens": load.requests,
        }
        return [sys.executable, "-c", RESULT, str(result), json.dumps(report)]


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def left(stand_in: StandIn) -> list[int]:
    """Children that live a moment after the benchmark has ended."""
    children = [int(line) for line in stand_in.children.read_text().split()]
    assert children
    deadline = time.monotonic() + 10
    while any(map(alive, children)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return [child for child in children if alive(child)]
