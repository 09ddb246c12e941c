"""Options that commands share: what a placement file says of its EP group."""

from __future__ import annotations

from eplb_plugin import Topology
from eplb_plugin.cli.options import fingerprint
from eplb_plugin.deployment import Deployment


def test_files_of_commands_and_of_servers_say_the_same() -> None:
    """A placement that `plan` writes is held against the header that a server of that layout expects."""
    topology = Topology(2, 4, 5)
    server = Deployment("m", "vllm", "mixed", topology, 32, None).placement_header()
    assert fingerprint(topology).items() <= server.items()
    assert set(fingerprint(topology)) == {"num_nodes", "num_ranks"}
