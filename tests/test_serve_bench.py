"""The serving benchmark on the user's machine: its command line, what it refuses, and that nothing of it is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from eplb_plugin.config import load_config
from generators import vllm_result
from serving.engine import Load
from serving.engines import ENGINES
from serving.server import ServerError
from serving.vllm import Vllm
from serving_bench import accuracy, plain
from serving_bench.user_arms import arm_arguments, arms_of
from serving_bench.user_options import parse

ROOT = Path(__file__).resolve().parents[1]
Answer = tuple[int, str, str]


@pytest.fixture
def bench(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Iterator[Callable[..., Answer]]:
    """`scripts/serve_bench` in this process; results go to tmp_path/out."""
    handlers = {sign: signal.getsignal(sign) for sign in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setenv("COLUMNS", "250")

    def call(*words: object) -> Answer:
        monkeypatch.setattr("sys.argv", ["serve_bench", "--out", str(tmp_path / "out"), *map(str, words)])
        code = plain.main()
        return code, *capsys.readouterr()

    yield call
    for sign, handler in handlers.items():
        signal.signal(sign, handler)


def config(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "given.yaml"
    path.write_text(text)
    return path


# arms


@pytest.mark.parametrize("engine", ENGINES)
def test_arms_differ_in_what_they_are_named_for_only(engine: str, tmp_path: Path) -> None:
    """Every arm with EPLB has the same redundancy, window and interval; the plugin's also the same other settings."""
    path = config(tmp_path, "window_size: 100\nstep_interval: 400\nsample_rows: 512\nnum_redundant_experts: 16\n")
    options = parse(["--engine", engine, "--model", "m", "--config", str(path), "--out", str(tmp_path / "o")])
    words = {name: arm_arguments(ENGINES[engine], arm, options.eplb, tmp_path) for name, arm in arms_of(engine).items()}
    assert words.pop("none") == []
    shared = [word for word in words["vanilla"] if word not in ("true", "false")]
    assert {"16", "100", "400"} <= set(shared)
    for name, given in words.items():
        assert [word for word in given if word not in ("true", "false")][: len(shared)] == shared, name
    settings = {name: load_config(tmp_path / f"{name}.yaml") for name in words if "vanilla" not in name}
    assert settings["balanced"].policy == "balanced"
    for name, one in settings.items():
        assert (one.num_redundant_experts, one.sample_rows) == (16, 512), name
        assert one.dispatch == (name.partition("-")[2] or "auto")


def test_synchronous_vanilla_is_vllm_s_own_switch(tmp_path: Path) -> None:
    """vanilla runs EPLB in the background, vanilla-sync does not; SGLang knows no such thing."""
    options = parse(["--model", "m", "--redundant-experts", "8", "--out", str(tmp_path / "o")])
    known = arms_of("vllm")
    last = {
        name: arm_arguments(ENGINES["vllm"], known[name], options.eplb, tmp_path)[-1] for name in known if "van" in name
    }
    assert last == {"vanilla": "true", "vanilla-sync": "false"}
    assert "vanilla-sync" not in arms_of("sglang")


def test_redundancy_of_the_flag_is_the_plugin_s_too(tmp_path: Path) -> None:
    """The arm's settings name it, so that a server with another one refuses them."""
    options = parse(["--model", "m", "--redundant-experts", "8", "--out", str(tmp_path / "o")])
    assert options.eplb is not None
    path = options.eplb.write(arms_of("vllm")["affinity"], tmp_path)
    assert load_config(path).num_redundant_experts == 8


# the load


def test_loads_differ_by_run_and_not_by_arm(tmp_path: Path) -> None:
    """Random prompts are new in every run and concurrency; those of a file are the same in all runs."""
    words = ["--model", "m", "--concurrency", "8,16", "--redundant-experts", "8", "--out", str(tmp_path / "o")]
    options = parse([*words, "--random", "100:50"])
    loads = [options.load(run, index) for run in range(2) for index in range(2)]
    assert [(one.requests, one.concurrency) for one in loads] == [(32, 8), (64, 16)] * 2
    assert {(one.input_tokens, one.output_tokens) for one in loads} == {(100, 50)}
    seeds = [one.seed for one in (*loads, options.warmup_load(0), options.warmup_load(1))]
    assert len(set(seeds)) == 6
    answers = config(tmp_path, "[]")
    filed = replace(options, dataset=answers)
    assert filed.load(0, 1) == filed.load(1, 1) != filed.load(1, 0)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_load_generator_is_told(engine: str) -> None:
    """Random lengths or the file, never both."""
    random = ENGINES[engine].bench(Path("m"), "http://u", Load(8, 2, 100, 50), Path("r.json"))
    filed = ENGINES[engine].bench(Path("m"), "http://u", Load(8, 2, dataset=Path("chats.json")), Path("r.json"))
    assert random[random.index("--random-input-len") + 1] == "100"
    assert "chats.json" in filed
    assert "--random-input-len" not in filed
    assert "--dataset-path" not in random


# refusals: one line, exit code 2, nothing left


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--model", "m", "--arms", "none,best"], "--arms: found best, expected some of none, vanilla"),
        (["--model", "m", "--arms", "none,none"], "expected every arm once"),
        (["--engine", "sglang", "--model", "m", "--arms", "vanilla-sync"], "found vanilla-sync"),
        ([], "--model: found nothing"),
        (["--model", "m"], "--redundant-experts: found nothing"),
        (["--model", "m", "--config", "none.yaml"], "none.yaml: cannot be read"),
        (["--model", "m", "--dataset", "none.json"], "none.json: cannot be read"),
        (["--model", "m", "--arms", "none", "--concurrency", "8,0"], "--concurrency: found 8,0"),
        (["--model", "m", "--arms", "none", "--random", "4096"], "expected IN:OUT"),
        (["--model", "m", "--url", "a=localhost:8000"], "--url: found a=localhost:8000"),
        (["--model", "m", "--url", "a=http://h", "--arms", "none"], "expected neither --arms"),
        (["--model", "m", "--arms", "none", "--", "--enable-eplb"], "arguments after --: found --enable-eplb"),
        (["--model", "m", "--arms", "none", "--", "--eplb-config.window_size=4"], "found --eplb-config"),
    ],
)
def test_refused_in_one_line(bench: Callable[..., Answer], tmp_path: Path, words: list[str], line: str) -> None:
    code, out, err = bench(*words)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert line in err
    assert not (tmp_path / "out").exists()


def test_unequal_redundancy_is_refused(bench: Callable[..., Answer], tmp_path: Path) -> None:
    """The settings file and the flag must say the same."""
    path = config(tmp_path, "num_redundant_experts: 16\n")
    code, _, err = bench("--model", "m", "--config", path, "--redundant-experts", 32)
    assert code == 2
    assert "found 32, expected 16" in err


def test_old_results_are_not_mixed_with(bench: Callable[..., Answer], tmp_path: Path) -> None:
    (tmp_path / "out" / "none").mkdir(parents=True)
    code, _, err = bench("--model", "m", "--arms", "none")
    assert (code, "which is not empty" in err) == (2, True)


def test_missing_lm_eval_is_told_before_anything_starts(
    bench: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    code, _, err = bench("--model", "m", "--arms", "none", "--accuracy", "gsm8k")
    assert (code, "--accuracy: found no lm_eval" in err) == (2, True)


def test_the_entry_asks_for_the_engine() -> None:
    """Without --cpu it runs with the user's Python, and says so where that has no engine."""
    script = ROOT / "scripts" / "serve_bench"
    done = subprocess.run([sys.executable, "-E", "-S", script, "--model", "m"], capture_output=True, text=True)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "found no vllm" in done.stderr


# servers


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
