"""A vLLM server whose data-parallel ranks live on the nodes of a network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eplb_plugin.bench.server import Server
from eplb_plugin.bench.vllm import VLLM, Vllm
from network.namespaces import Network


class NodesServer(Server):
    """One `vllm serve` per node: the first is the head, which clients talk to; the others have ranks only.

    Logs: node0.log … beside `log`, which holds the head's.
    """

    def __init__(
        self,
        network: Network,
        model: Path,
        arguments: list[str],
        log: Path,
        *,
        ranks_per_node: int = 1,
        engine: Vllm = VLLM,
        environment: Mapping[str, str] | None = None,
        **keywords: Any,
    ) -> None:
        environment = {
            "EPLB_CPU_ALL2ALL": "sparse",
            "EPLB_CPU_RANKS_PER_NODE": str(ranks_per_node),
            "GLOO_SOCKET_IFNAME": "uplink",
            **(environment or {}),
        }
        super().__init__(engine, model, arguments, log, ranks=1, environment=environment, **keywords)
        self.network, self.ranks_per_node = network, ranks_per_node
        self.url = f"http://{network.head}:{self.port}"

    def start(self) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        jobs = [self._job(node) for node in range(self.network.nodes)]
        self.log.touch()
        together = [sys.executable, str(Path(__file__).with_name("together.py")), json.dumps(jobs)]
        self.process = subprocess.Popen(together, env=self.environment, start_new_session=True)

    def node_log(self, node: int) -> Path:
        return self.log if node == 0 else self.log.with_name(f"{self.log.stem}.node{node}.log")

    def _job(self, node: int) -> dict[str, Any]:
        """What together.py starts on a node."""
        own, ranks = self.ranks_per_node, self.network.nodes * self.ranks_per_node
        words = VLLM.serve_part(self.model, self.port, self.network.address(0), node * own, own, ranks)
        cores = os.cpu_count() or 1
        return {
            "command": self.network.inside(node, [*words, *self.arguments]),
            "environment": {
                "VLLM_HOST_IP": self.network.address(node),
                "VLLM_CPU_OMP_THREADS_BIND": "|".join(str((node * own + rank) % cores) for rank in range(own)),
            },
            "log": str(self.node_log(node)),
        }
