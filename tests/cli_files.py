"""What tests of commands share: a model's routing, a cluster for it, and what a refusal looks like."""

from __future__ import annotations

from eplb_plugin import Topology
from eplb_plugin.workloads.routing import ClusteredRouter

Answer = tuple[int, str, str]
ROUTER = ClusteredRouter(2, 32, 4, num_topics=4, purity=0.8, strength=3.0, skew=0.7)
CLUSTER = ("--nodes", 2, "--ranks-per-node", 2, "--slots-per-rank", 10)
TOPOLOGY = Topology(2, 2, 10)
FIGURES = {"balancedness", "node_fan_out", "cross_node_copies", "busiest_ingress"}


def refused(answer: Answer, *parts: str) -> None:
    """Exit code 2, nothing on stdout, one line on stderr that has these parts."""
    code, out, err = answer
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert err.startswith("eplb-plugin: ")
    for part in parts:
        assert part in err
