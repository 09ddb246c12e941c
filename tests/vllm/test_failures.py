"""Whatever fails around a rebalance ends in one clear message and the old placement or a stopped server, not a hang."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from eplb_plugin.bench.engine import Completion, Eplb, Layout
from eplb_plugin.bench.server import Server
from serving.greedy import complete_all, largest_difference
from witnesses import look_at

pytestmark = pytest.mark.server

SETTINGS = "topology: {nodes: 2}\nsample_rows: 1024\n"
LAYOUT = Layout(data_parallel=2)
EPLB = Eplb(16, window_size=4, step_interval=8)


def start(
    serve: Callable[..., Server], control: Path, fault_path: str, layout: Layout = LAYOUT, settings: str = SETTINGS
) -> Server:
    watched = {"EPLB_FAULTS": str(control), "EPLB_WITNESS": str(control.with_name("witness")), "PYTHONPATH": fault_path}
    return serve("qwen3_moe", layout, EPLB, settings, **watched)


def serve_until(server: Server, pattern: str, expected: list[Completion], since: int = 0) -> str:
    """Serve correct output until the log says `pattern`; returns the line. Fails after 30 rounds."""
    for _ in range(30):
        assert largest_difference(expected, complete_all(server)) < 1e-4
        found = re.search(rf".*{pattern}.*", server.text()[since:])
        if found:
            return found[0]
    raise AssertionError(f"{pattern!r} did not appear in the log")


def test_failed_rebalances_keep_the_old_placement_and_a_killed_worker_ends_the_server(
    serve: Callable[..., Server], reference: Callable[[str], list[Completion]], tmp_path: Path, fault_path: str
) -> None:
    """A planner that raises, a damaged plan, a rank that cannot read its experts and one that receives a wrong row are
    refused by all ranks, the next rebalance works, and kill -9 ends the server."""
    expected = reference("qwen3_moe")
    control = tmp_path / "faults"
    server = start(serve, control, fault_path)
    server.wait_ready()
    serve_until(server, "slots move, planned in", expected)

    control.write_text("planner")
    line = serve_until(server, "refused, the old placement stays", expected)
    assert "planning failed: RuntimeError: a fault was injected into the planner" in line

    control.write_text("digest")
    serve_until(server, "refused, the old placement stays: plan digest: found [0-9a-f]+, expected", expected)
    serve_until(server, "refused, the old placement stays: another rank did not accept", expected)

    control.write_text("reading")
    serve_until(server, r"refused after \d of .*: rank \d refused; here: reading: RuntimeError: a fault", expected)

    control.write_text("row")
    line = serve_until(server, "rows differ from their source, first expert", expected)
    assert "the others serve on as they are placed" in line

    control.write_text("")
    before = len(server.text())
    serve_until(server, "slots move, planned in", expected, since=before)
    serve_until(server, r"migration \d+: \d+ layers in", expected, since=before)
    look_at(tmp_path / "witness", LAYOUT.ranks)

    os.kill(worker_of(server, 1), signal.SIGKILL)
    refused_within(server, seconds=120)
    server.wait_ended(120)


def refused_within(server: Server, seconds: float) -> None:
    """A request is answered with an error or a closed connection, not left hanging."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            server.post("/v1/completions", {"model": str(server.model), "prompt": [11, 12], "max_tokens": 2}, seconds)
        except TimeoutError:
            raise  # a hang
        except OSError:
            return
    raise AssertionError(f"the server still answered {seconds:.0f} s after a worker was killed")


def worker_of(server: Server, rank: int) -> int:
    found = re.search(rf"\(Worker_DP{rank}\S* pid=(\d+)\)", server.text())
    assert found, "no such worker in the log"
    return int(found[1])


def test_a_differing_hook_signature_ends_the_start(
    serve: Callable[..., Server], tmp_path: Path, fault_path: str
) -> None:
    """A vLLM whose EplbState.step takes other parameters is refused with found, expected and fix."""
    control = tmp_path / "faults"
    control.write_text("signature")
    server = start(serve, control, fault_path)
    assert server.wait_ended(180) != 0
    line = (
        "EplbState.step: found (self, is_dummy=False, renamed=False), expected (self, is_dummy=False, is_profile=False"
    )
    assert line in server.text()


def test_unequal_tables_of_owners_end_the_start(serve: Callable[..., Server], tmp_path: Path, fault_path: str) -> None:
    """Two ranks that route the same tokens, one of which makes tables as if it was alone."""
    control = tmp_path / "faults"
    control.write_text("owners")
    server = start(serve, control, fault_path, Layout(tensor_parallel=2), "topology: {nodes: 1}\nsample_rows: 1024\n")
    assert server.wait_ended(240) != 0
    assert "token-owner group [0, 1]: found other tables on rank 1 than on rank 0" in server.text()


def test_bad_settings_end_the_start_at_once(serve: Callable[..., Server]) -> None:
    """One line with key, value, rule and the nearest valid value; no traceback; no model is loaded."""
    server = serve("qwen3_moe", LAYOUT, EPLB, "window_size: 0\n")
    assert server.wait_ended(60) == 2
    lines = [line for line in server.text().splitlines() if line.startswith("eplb-plugin:")]
    assert len(lines) == 1
    assert "window_size: found 0, expected an integer in 1..1000000; fix: the nearest valid value is 1" in lines[0]
    assert "Traceback" not in server.text()


def test_no_process_is_left(serve: Callable[..., Server]) -> None:
    """Stopping a server while it starts leaves no process of its group."""
    server = serve("qwen3_moe", LAYOUT, EPLB, SETTINGS)
    time.sleep(15)
    assert server.process is not None
    group = server.process.pid
    server.stop()
    listed = subprocess.run(["ps", "-eo", "pgid,stat"], capture_output=True, text=True, check=True).stdout
    alive = [line for line in listed.splitlines() if line.split()[0] == str(group) and "Z" not in line.split()[1]]
    assert alive == []
