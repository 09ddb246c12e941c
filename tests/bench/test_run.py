"""The benchmark on a user's machine, with servers stood in for: turns, table, and that nothing of it is left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from eplb_plugin.bench import accuracy
from eplb_plugin.bench.engine import Load
from eplb_plugin.bench.engines import ENGINES
from eplb_plugin.bench.server import ServerError
from eplb_plugin.bench.vllm import Vllm
from generators import vllm_result
from serve_bench_runs import Answer

ROOT = Path(__file__).resolve().parents[2]


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
        self.measured: list[str] = []

    def serve(self, model: Path, port: int) -> list[str]:
        return [sys.executable, "-c", STAND_IN, str(self.children), str(port), self.way]

    def bench(self, model: Path, url: str, load: Load, result: Path) -> list[str]:
        arm, run = result.parent.name, len(self.measured)
        self.measured.append(f"{arm}/{result.stem}")
        report = vllm_result(self.qps.get(arm, 1.0) + run / 100, load.concurrency, num_prompts=load.requests)
        report |= {f"p{share}_{name}_ms": 1.0 for share in (50, 90, 95, 99) for name in ("ttft", "tpot", "itl")}
        report |= {
            "completed": load.requests,
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


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., StandIn]:
    def make(way: str, **qps: float) -> StandIn:
        made = StandIn(tmp_path, way, qps)
        monkeypatch.setitem(ENGINES, "vllm", made)
        monkeypatch.setattr("importlib.metadata.version", lambda name: "0")
        return made

    return make


def test_a_server_that_dies_ends_it_in_one_line(
    bench: Callable[..., Answer], stand_in: Callable[..., StandIn], tmp_path: Path
) -> None:
    """The line names the arm, the exit code, the log's error and where the logs are; no child is left."""
    server = stand_in("dies")
    code, _, err = bench("--model", "m", "--arms", "none,vanilla", "--redundant-experts", 8, "--runs", 1)
    assert (code, len(err.splitlines())) == (1, 1)
    for part in ("none, run 1", "exit code 1", "RuntimeError: no GPU here", str(tmp_path / "out")):
        assert part in err
    assert left(server) == []


def test_runs_are_in_turn_and_compared(
    bench: Callable[..., Answer], stand_in: Callable[..., StandIn], tmp_path: Path
) -> None:
    """Arms are rotated from run to run, every concurrency is measured on each server, and the table ranks nothing."""
    server = stand_in("serves", none=4.0, vanilla=8.0)
    words = ["--model", "m", "--arms", "none,vanilla", "--redundant-experts", 8, "--concurrency", "2,4", "--runs", 2]
    code, out, err = bench(*words, "--", "--some-flag", "7")
    assert (code, err) == (0, "")
    measured = [name for name in server.measured if not name.startswith("warmup")]
    assert [name.partition("/")[0] for name in measured] == ["none"] * 2 + ["vanilla"] * 4 + ["none"] * 2
    assert "--runs 2 can decide none of 8 comparisons, --runs 6 could" in out
    assert "0 of 8 comparisons decided" in out
    assert "not told apart" in out
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert settings["arms"]["none"] == ["--some-flag", "7"]
    assert settings["arms"]["vanilla"][:2] == ["--some-flag", "7"]
    assert sorted(path.name for path in (tmp_path / "out" / "none").glob("*.json")) == [
        "run1-c2.json", "run1-c4.json", "run2-c2.json", "run2-c4.json",
    ]  # fmt: skip
    assert left(server) == []


def test_running_servers_are_not_stopped(
    bench: Callable[..., Answer], stand_in: Callable[..., StandIn], tmp_path: Path
) -> None:
    """--url: loads a server that someone else started, and leaves it running; one that is down is one line."""
    stand_in("serves", mine=4.0)
    command = [sys.executable, "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(tmp_path)]
    (tmp_path / "health").write_text("")
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        assert process.stdout is not None
        port = process.stdout.readline().rpartition("port ")[2].split()[0]
        code, out, _ = bench("--model", "m", "--url", f"mine=http://127.0.0.1:{port}", "--concurrency", 2, "--runs", 1)
        running = process.poll() is None
        process.kill()
    assert (code, running) == (0, True)
    assert "one arm: nothing to compare" in out


# accuracy


def test_accuracy_is_read_and_shown(
    bench: Callable[..., Answer], stand_in: Callable[..., StandIn], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """lm_eval is asked once per arm; the table has its figure and standard error."""
    figures = {"alias": "gsm8k", "exact_match,strict-match": 0.9545, "exact_match_stderr,strict-match": 0.0057}
    text = json.dumps({"results": {"gsm8k": figures}})
    program = tmp_path / "lm_eval"
    program.write_text(
        f"#!{sys.executable}\nimport pathlib, sys\n"
        "out = pathlib.Path(sys.argv[sys.argv.index('--output_path') + 1]) / 'm'\n"
        f"out.mkdir(parents=True)\n(out / 'results_1.json').write_text({text!r})\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    stand_in("serves")
    words = ["--model", "m", "--arms", "none,vanilla", "--redundant-experts", 8, "--concurrency", 2, "--runs", 2]
    code, out, err = bench(*words, "--accuracy", "gsm8k")
    assert (code, err) == (0, "")
    assert out.count("0.9545 ± 0.0057") == 2
    with pytest.raises(ServerError, match="no figure of mmlu"):
        accuracy.read(tmp_path / "nothing", "mmlu")
