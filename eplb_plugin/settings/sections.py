"""The sections of PluginConfig; their docstrings and descriptions are what a user reads in the JSON schema."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..errors import PluginError, mismatch
from ..peo.ops import Overlap
from ..peo.schedule import default_num_rounds
from ..topology import Topology
from .messages import conflict


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class TopologyConfig(Section):
    """Which ranks share a fast link. Either `nodes` (with `ranks_per_node`), or `node_of_rank`."""

    nodes: Annotated[int, Field(ge=1, le=4096)] | None = Field(
        None, description="Number of nodes (fast-link domains: servers, or NVLink domains) of the EP group."
    )
    ranks_per_node: Annotated[int, Field(ge=1, le=4096)] | None = Field(
        None, description="EP ranks on each node, numbered node by node; left out: EP size / nodes."
    )
    node_of_rank: list[Annotated[int, Field(ge=0)]] | None = Field(
        None, min_length=1, description="Node number of every EP rank, where ranks are not numbered node by node."
    )

    @model_validator(mode="after")
    def _one_way(self) -> TopologyConfig:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if given not in (["nodes"], ["nodes", "ranks_per_node"], ["node_of_rank"]):
            expected = "either nodes (with or without ranks_per_node) or node_of_rank"
            fix = "remove the keys of the other way"
            raise conflict("topology", found=" and ".join(given) or "neither", expected=expected, fix=fix)
        if self.node_of_rank is not None:
            try:
                Topology.from_nodes(self.node_of_rank, 1)
            except PluginError as error:  # uneven nodes: known without the EP size
                raise ValueError(str(error)) from None
        return self

    def of_ranks(self, ep_size: int, slots_per_rank: int) -> Topology:
        """Raises PluginError where the nodes and the EP size do not fit."""
        if self.node_of_rank is not None:
            if len(self.node_of_rank) != ep_size:
                raise mismatch(
                    "topology.node_of_rank",
                    found=f"{len(self.node_of_rank)} ranks",
                    expected=f"{ep_size} (the EP size)",
                    fix="give one node number per EP rank",
                )
            return Topology.from_nodes(self.node_of_rank, slots_per_rank)
        nodes = self.nodes or 1
        per_node = self.ranks_per_node or ep_size // nodes
        if nodes * per_node != ep_size:
            divisors = [count for count in range(1, ep_size + 1) if ep_size % count == 0]
            nearest = min(divisors, key=lambda count: abs(count - nodes))
            raise mismatch(
                "topology",
                found=f"nodes={nodes} × ranks_per_node={per_node}",
                expected=f"a product of {ep_size} (the EP size)",
                fix=f"nodes={nearest}, ranks_per_node={ep_size // nearest} is the nearest that fits",
            )
        return Topology(nodes, per_node, slots_per_rank)


class BudgetConfig(Section):
    """Bounds on what one rebalance may move."""

    max_moved_slots: Annotated[int, Field(ge=0, le=1_000_000)] | None = Field(
        None, description="Expert slots per layer that one rebalance may refill; left out: no bound."
    )
    max_moved_slots_total: Annotated[int, Field(ge=0, le=100_000_000)] | None = Field(
        None, description="Expert slots over all layers that one rebalance may refill; left out: no bound."
    )


class RebalanceConfig(Section):
    """When a rebalance begins before the engine's interval has ended; see docs/planner.md.

    Judged by the windows that shares are solved again from (resplit_windows).
    """

    when_balancedness_falls_by: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        0.1, description="What windows' balancedness may fall short of what was planned, beyond chance; 1: never early."
    )
    windows: Annotated[int, Field(ge=1, le=1_000)] = Field(
        2, description="Windows in a row that have to fall short by more than that."
    )
    min_steps: Annotated[int, Field(ge=0, le=100_000_000)] = Field(
        256, description="Engine steps since the last rebalance before which none begins early."
    )


class PriceConfig(Section):
    """What a move must save to be worth its bytes; see docs/planner.md. The bytes of an expert are the engine's."""

    link_gbps: Annotated[float, Field(ge=0.001, le=1e6)] | None = Field(
        None, description="Gbit/s of one rank's link to other nodes; a network card that ranks share counts in parts."
    )
    token_bytes: Annotated[float, Field(ge=0.0, le=1e9)] | None = Field(
        None, description="Bytes of one token's copy to another node, there (dispatch) and back (combine)."
    )
    seconds_per_selection: Annotated[float, Field(ge=0.0, le=1.0)] | None = Field(
        None, description="Seconds that a rank computes for one (token, expert) selection in one layer."
    )
    horizon_steps: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = Field(
        None, description="Engine steps that a move has to pay off in; left out: the steps between rebalances."
    )

    @model_validator(mode="after")
    def _complete(self) -> PriceConfig:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if "link_gbps" not in given or not {"token_bytes", "seconds_per_selection"} & set(given):
            expected = "link_gbps and one of token_bytes, seconds_per_selection"
            raise conflict(
                "price", found=" and ".join(given) or "neither", expected=expected, fix="add what is missing"
            )
        return self


STAGING_BYTES = 256 << 20


class MigrationConfig(Section):
    """How fast experts are moved while the engine serves, and when a move is given up; see docs/migration.md."""

    layers_per_step: Annotated[int, Field(ge=1, le=10_000)] = Field(
        1, description="Layers whose experts and maps may change on one engine step."
    )
    bytes_per_step: Annotated[int, Field(ge=1, le=1 << 50)] | None = Field(
        None,
        description="Bytes that a rank may copy on one engine step; a single layer may need more; left out: what is "
        "staged at once.",
    )
    staging_bytes: Annotated[int, Field(ge=1, le=1 << 50)] | None = Field(
        None,
        description="Memory of a rank for experts on their way, in bytes; a layer that does not fit is moved in "
        "several hops; left out: 256 MiB, or what a few experts need where these are larger.",
    )
    planning_seconds: Annotated[float, Field(ge=0.001, le=86_400.0)] = Field(
        600.0, description="A plan that takes longer is refused by all ranks."
    )
    transfer_seconds: Annotated[float, Field(ge=0.001, le=86_400.0)] = Field(
        30.0, description="A message between ranks that takes longer breaks the move off; the old placement serves on."
    )
    vote_seconds: Annotated[float, Field(ge=0.001, le=86_400.0)] | None = Field(
        None,
        description="A rank that says nothing for so long ends the server; longer than the slowest engine step; left "
        "out: 300, or SGLang's --watchdog-timeout if that is longer.",
    )


Sms = Annotated[int, Field(ge=1, le=1024)] | None


class PeoConfig(Section):
    """Per-expert overlap of DeepEP's low-latency kernels with DeepGEMM; see docs/peo.md."""

    method: Overlap = Field("overlap-1", description="What runs beside what; `eplb-plugin peo plan` compares them.")
    num_rounds: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        None, description="Slices of a rank's experts, which must divide them; left out: about 4."
    )
    deepep_send_num_sms: Sms = Field(None, description="SMs of a SEND beside other kernels; left out: 16.")
    deepep_recv_num_sms: Sms = Field(None, description="SMs of a RECV beside other kernels; left out: 16.")
    up_deepgemm_num_sms: Sms = Field(None, description="SMs of the gate-up GEMM; left out: those that DeepEP leaves.")
    down_deepgemm_num_sms: Sms = Field(None, description="SMs of the down GEMM; left out: those that DeepEP leaves.")
    stock_api: bool = Field(
        False, description="Overlap the dispatch alone where DeepEP is not patched (overlap-2, without SM shares); "
        "by default PEO stays off there.",
    )  # fmt: skip

    def rounds(self, slots_per_rank: int) -> int | None:
        """Rounds that a rank's slots are split into; None: they cannot be."""
        rounds = self.num_rounds or default_num_rounds(slots_per_rank)
        return rounds if slots_per_rank % rounds == 0 else None


class ExactConfig(Section):
    """Even ranks in every large step, from that step's own counts; see docs/dispatch.md."""

    min_tokens: Annotated[int, Field(ge=1, le=1 << 30)] = Field(
        1024, description="Tokens of the largest rank's batch, padding too, from which a step is large."
    )
    tolerance: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        0.0, description="Share by which ranks may exceed the lightest busiest rank, where that keeps tokens on nodes."
    )


class LoggingConfig(Section):
    """What the plugin writes into the engine's log."""

    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severity that is logged.")
    rebalances: bool = Field(True, description="One line per rebalance: balance, cross-node copies, slots moved.")


class MetricsConfig(Section):
    """What is shown of the plugin in the engine's /metrics."""

    per_layer_rank: bool = Field(False, description="The load of every layer and rank too: layers × ranks series.")


SECTIONS: dict[str, type[BaseModel]] = {
    "topology": TopologyConfig, "rebalance": RebalanceConfig, "budget": BudgetConfig, "price": PriceConfig,
    "migration": MigrationConfig, "peo": PeoConfig, "exact": ExactConfig, "logging": LoggingConfig,
    "metrics": MetricsConfig,
}  # fmt: skip
