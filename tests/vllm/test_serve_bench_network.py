"""The benchmark on nodes with limited links, at its smallest: one server, three placements, and everything removed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.serving.arms import ARMS as ALL_ARMS
from bench.serving.arms import Layout
from bench.serving.soak import Schedule, soak, synthetic_kinds
from eplb_plugin.bench.engine import Completion
from eplb_plugin.bench.progress import Progress
from eplb_plugin.bench.rounds import rotated
from eplb_plugin.observe.paired_file import read_paired
from network.namespaces import Network, NetworkError

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
ARMS = ["placed-vanilla", "placed-affinity-weighted", "placed-affinity-cover"]


def namespaces_work() -> str:
    """Why they do not; empty if they do."""
    if os.geteuid() != 0 or shutil.which("tc") is None or shutil.which("ip") is None:
        return "needs root, ip and tc"
    try:
        with Network(1) as network:
            network.limit(10)
    except NetworkError as error:
        return str(error)
    return ""


@pytest.fixture(scope="module", autouse=True)
def _needs_namespaces() -> None:
    if problem := namespaces_work():
        pytest.skip(f"no nodes here: {problem}")


def namespaces() -> list[str]:
    listing = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    return [line.split()[0] for line in listing.splitlines() if line.startswith("eplb-")]


def test_what_a_killed_run_left_is_swept() -> None:
    """Its namespaces, and what still runs in them."""
    made = (
        "import os, signal, subprocess, time\n"
        "from network.namespaces import Network\n"
        "with Network(2) as network:\n"
        "    command = network.inside(1, ['sleep', '600'])\n"
        "    sleeper = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)\n"
        "    print(sleeper.pid, flush=True)\n"
        "    time.sleep(1)  # until it is on its node\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    path = {**os.environ, "PYTHONPATH": str(SCRIPTS)}
    dead = subprocess.run([sys.executable, "-c", made], env=path, stdout=subprocess.PIPE, text=True)
    assert dead.returncode == -9
    assert len(namespaces()) == 3
    with Network(1):
        assert len(namespaces()) == 2
    assert namespaces() == []
    assert not lives(int(dead.stdout))


def lives(pid: int) -> bool:
    """Whether it runs: a zombie whose new parent has not looked yet does not."""
    try:
        stat = Path("/proc", str(pid), "stat").read_text()
    except OSError:
        return False
    return stat[stat.rindex(")") + 2] != "Z"


def test_two_networks_at_once_are_refused() -> None:
    with Network(1), pytest.raises(NetworkError, match="another run"), Network(1):
        pass
    assert namespaces() == []


@pytest.mark.server
def test_placements_in_paired_rounds(models: Callable[[str], Path], tmp_path: Path) -> None:
    """The bytes that cross follow the copies that the meter counts, in all arms, and affinity saves both. With `cover`
    in force on the same server no less than with tables, by which its placement would send 7 % more than theirs."""
    out = tmp_path / "out"
    settings = tmp_path / "eplb.yaml"
    settings.write_text("balance_tolerance: 0.01\n")
    command = [
        sys.executable, "-m", "bench.serving.network", "--network", "2x1", "--arms", ",".join(ARMS),
        "--model", str(models("qwen3_moe")), "--rounds", "3", "--seconds", "1", "--starts", "1", "--rates", "20",
        "--concurrency", "8", "--config", str(settings), "--out", str(out),
    ]  # fmt: skip
    path = os.pathsep.join([str(SCRIPTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert namespaces() == []
    read = read_paired(out / "results.json")
    rounds = read.rounds
    assert read.reference == ARMS[0]
    assert [(one.arm, one.round) for one in rounds] == [
        (arm, number) for number in range(3) for arm in rotated(ARMS, number)
    ]
    saved = {(cell.arm, cell.figure): cell.change or 0.0 for cell in read.compare().cells}
    for arm in ARMS[1:]:
        assert saved[arm, "copies_per_token"] < -0.1
        assert saved[arm, "bytes_per_output_token"] < -0.05
    assert saved[ARMS[2], "copies_per_token"] < saved[ARMS[1], "copies_per_token"] + 0.03
    assert "balance_tolerance: 0.01" in (out / "placed-0" / "eplb.yaml").read_text()
    notes = json.loads((out / "results.json").read_text())["notes"]
    placed = notes["placements"]["placed 0"]
    assert len({facts["digest"] for facts in placed.values()}) == 4
    assert "comparisons decided" in done.stdout


@pytest.mark.server
def test_a_short_soak(
    models: Callable[[str], Path], reference: Callable[[str], list[Completion]], tmp_path: Path
) -> None:
    """Ranks are stopped, traffic changes, experts move, and every answer that is known comes back the same."""
    schedule = Schedule(seconds=40, kind=10, pause_every=8, pause=2, sample=2, clients=6)
    with Network(2) as network:
        found = soak(
            network, Layout(2, 1), ALL_ARMS["affinity-weighted"], models("qwen3_moe"), reference("qwen3_moe"),
            synthetic_kinds(), schedule, tmp_path, Progress(),
        )  # fmt: skip
    assert found.problems == []
    assert namespaces() == []
    assert found.checks > 5
    assert len(set(found.kinds)) == 4
    assert len(found.pauses) >= 3
    assert found.rebalances > 0
    assert found.slots_moved > 0
    assert any(name.startswith("VLLM::Worker") for name in found.memory)
    assert json.loads(json.dumps(found.report()))["largest_logprob_difference"] < 1e-3
