"""Engines and workers of a real Ray cluster, which was started by somebody else and knows no settings."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from eplb_cpu_engines.triton_backend import ENVIRONMENT as INTERPRETED
from eplb_cpu_engines.vllm.ray_ranks import RESOURCE

from eplb_plugin.bench.engine import Completion, Eplb, Layout
from eplb_plugin.bench.ports import free_port
from eplb_plugin.bench.server import Server
from eplb_plugin.bench.vllm import VLLM
from kept_state import serve_until

pytestmark = pytest.mark.server

SETTINGS = "topology: {nodes: 2}\nsample_rows: 1024\nforecast_windows: 1\n"
RANKS = 2
# on loopback ("cluster" means: on an address of the network), with nothing reported, every worker's lines in the log
LOCAL = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}
# Ray starts the engines too: they get VLLM_… of the server's variables, so none of the plugin's
BACKEND = ["--data-parallel-backend", "ray", "--data-parallel-size-local", str(RANKS)]


@contextmanager
def cluster(**environment: str) -> Iterator[dict[str, str]]:
    """One node, whose processes have this environment -> what a server needs to find it."""
    address, ours = f"127.0.0.1:{free_port()}", {**VLLM.environment("0|1"), **INTERPRETED, **LOCAL}
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:  # sockets need a short path
        command = [
            str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--node-ip-address", "127.0.0.1",
            "--port", address.rpartition(":")[2], "--min-worker-port", "0", "--max-worker-port", "0",
            "--num-cpus", str(2 * RANKS), "--resources", f'{{"{RESOURCE}": {RANKS}}}', "--include-dashboard", "false",
            "--object-store-memory", str(10**8), "--temp-dir", folder,
        ]  # fmt: skip
        with (Path(folder) / "log").open("w+") as log:
            process = subprocess.Popen(
                command, env={**os.environ, **ours, **environment}, stdout=log, stderr=log, start_new_session=True
            )
            try:
                while "Ray runtime started" not in Path(log.name).read_text():
                    assert process.poll() is None, Path(log.name).read_text()
                    time.sleep(0.5)
                yield {**LOCAL, "RAY_ADDRESS": address}
            finally:
                os.killpg(process.pid, signal.SIGKILL)  # Ray's workers end when they miss their raylet
                process.wait()


def start(serve: Callable[..., Server], address: dict[str, str]) -> Server:
    eplb = Eplb(16, window_size=4, step_interval=8)
    layout = Layout(data_parallel=RANKS)
    return serve("qwen3_moe", layout, eplb, SETTINGS, way="environment", arguments=BACKEND, **address)


def test_rays_engines_rebalance_by_settings_of_the_server_alone(
    serve: Callable[..., Server], reference: Callable[[str], list[Completion]]
) -> None:
    """EPLB_PLUGIN_CONFIG, where `vllm serve` is called: active in the workers of both engines, output unchanged."""
    expected = reference("qwen3_moe")
    with cluster() as address:
        server = start(serve, address)
        server.wait_ready()
        serve_until(server, 10, expected)
        assert server.text().count("eplb_plugin is active in each of 1 workers") == RANKS
        assert server.text().count("DPMoEEngineCoreActor pid=") > 0
        assert "refused" not in server.text()
        server.stop()


def test_a_cluster_without_the_plugin_ends_the_start(serve: Callable[..., Server]) -> None:
    """Engines that could only be vanilla do not begin: one line says what is missing."""
    with cluster(EPLB_PLUGIN_DISABLE="1") as address:
        server = start(serve, address)
        assert server.wait_ended(180) != 0
        line = "plugin: found EPLB_PLUGIN_DISABLE in a process of the engine, expected active in every process; fix: i"
        assert line in server.text()
