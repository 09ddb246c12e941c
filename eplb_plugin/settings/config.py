"""PluginConfig: what a user may tune, as YAML, as a pydantic model, and as a JSON schema."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from ..errors import PluginError, mismatch
from ..files import expanded, unexpanded
from ..limits import MOST_NODES
from ..plan_types import Dispatch, Effort, PlanOptions, Policy
from ..topology import Topology
from .messages import conflict, explain
from .sections import (
    SECTIONS,
    BudgetConfig,
    ExactConfig,
    LoggingConfig,
    MetricsConfig,
    MigrationConfig,
    PeoConfig,
    PriceConfig,
    RebalanceConfig,
    Section,
    TopologyConfig,
)

KEY = "eplb_plugin"  # under which settings may stand in a larger document


class PluginConfig(Section):
    """Settings of eplb_plugin. Unknown keys are refused."""

    policy: Policy = Field(
        "affinity",
        description="affinity: balanced ranks and few tokens crossing nodes; balanced: load only; "
        "deepseek: the engines' own (vanilla) algorithm, for comparison.",
    )
    topology: Literal["auto"] | TopologyConfig = Field(
        "auto", description="auto: ranks on one host form a node; or nodes declared by hand."
    )
    window_size: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(
        None, description="Engine steps before a rebalance whose routing is recorded; left out: the engine's setting."
    )
    step_interval: Annotated[int, Field(ge=2, le=100_000_000)] | None = Field(
        None, description="Engine steps between rebalances; left out: the engine's setting."
    )
    resplit_windows: Annotated[int, Field(ge=0, le=1_000_000)] = Field(
        1,
        description="Between rebalances, windows after which the replicas' shares are solved again, where "
        "every expert stays; 0: never.",
    )
    num_redundant_experts: Annotated[int, Field(ge=0, le=100_000)] | None = Field(
        None,
        description="Redundant expert slots per layer, over all ranks, that the engine must have been started with; "
        "left out: not checked. The engine's own flag sets it, because it sizes the weights.",
    )
    dispatch: Literal["auto", Dispatch] = Field(
        "auto",
        description="How a token's replica is chosen, and what the plan is made for; auto: the best that the engine "
        "can do. hash: evenly; nearest: fixed per rank; weighted: tables per rank; cover: a kernel of its own.",
    )
    sample_rows: Annotated[int, Field(ge=256, le=65_536)] = Field(
        8192, description="Whole top-k rows kept per layer and window, summed over ranks, for the affinity policy."
    )
    balance_tolerance: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        0.02, description="Share by which a node's planned load may exceed the mean (affinity policy)."
    )
    effort: Effort = Field(
        "thorough",
        description="How long the affinity policy searches, in the background: fast finds about four fifths of the "
        "saved copies in a fraction of the time.",
    )
    forecast_windows: Annotated[int, Field(ge=1, le=64)] = Field(
        8, description="Newest windows that a plan's load is forecast from; 1: the newest window alone."
    )
    # pydantic copies defaults, and these are frozen besides
    rebalance: RebalanceConfig = Field(
        RebalanceConfig(), description="When a rebalance begins before the engine's interval has ended."
    )
    budget: BudgetConfig = Field(BudgetConfig(), description="Bounds on what one rebalance may move.")
    price: PriceConfig | None = Field(None, description="Move a layer only if that pays; left out: every move is made.")
    migration: MigrationConfig = Field(MigrationConfig(), description="How experts are moved while the engine serves.")
    peo: PeoConfig | None = Field(None, description="Overlap communication and computation; left out: do not.")
    exact: ExactConfig | None = Field(
        None, description="Even the ranks out in every large step; left out: on average alone."
    )
    state_directory: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="Folder of the planning rank's host in which the newest window and the placement that has served "
        "are kept, for the next start and for `eplb-plugin record`; left out: nothing is kept.",
    )
    initial_placement: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="Placement file to begin with, on the planning rank's host. The server refuses to start if it does "
        "not fit the model. Left out: the one in state_directory, if it fits, else the engine's own.",
    )
    logging: LoggingConfig = Field(LoggingConfig(), description="What is logged.")
    metrics: MetricsConfig = Field(MetricsConfig(), description="What is shown in the engine's metrics.")

    @field_validator("state_directory", "initial_placement")
    @classmethod
    def _expanded(cls, path: str | None, info: ValidationInfo) -> str | None:
        """`~` and `$NAME` as the shell would have them, here, in the launcher's environment: what is passed on to other
        processes holds the answer.
        """
        if path is None:
            return None
        found = expanded(path)
        if unset := unexpanded(found):
            fix = "set it, or write the path out"
            raise conflict(str(info.field_name), found=path, expected=f"a path in which {unset} has a value", fix=fix)
        return found

    @model_validator(mode="after")
    def _window_within_interval(self) -> PluginConfig:
        if self.window_size is not None and self.step_interval is not None and self.window_size > self.step_interval:
            expected = f"<= step_interval ({self.step_interval})"
            fix = f"the nearest valid value is {self.step_interval}"
            raise conflict("window_size", found=self.window_size, expected=expected, fix=fix)
        return self

    @model_validator(mode="after")
    def _budget_can_be_kept(self) -> PluginConfig:
        for name in BudgetConfig.model_fields:
            bound = getattr(self.budget, name)
            if self.policy == "deepseek" and bound is not None:
                expected, fix = "no bound: policy deepseek always solves afresh", "policy: balanced, or leave it out"
                raise conflict(f"budget.{name}", found=bound, expected=expected, fix=fix)
        return self

    @property
    def plan_options(self) -> PlanOptions:
        """Without prices: those need to know the engine's steps and weights."""
        return PlanOptions(
            effort=self.effort,
            balance_tolerance=self.balance_tolerance,
            exact=self.exact is not None,
            **self.budget.model_dump(),
        )

    def peo_rounds(self, slots_per_rank: int) -> int | None:
        """Rounds that a rank's slots are split into; None: no overlap, or they cannot be."""
        return self.peo.rounds(slots_per_rank) if self.peo else None

    def dispatch_among(self, possible: Sequence[Dispatch]) -> Dispatch:
        """What will run in an engine that can do `possible`, best first. Raises PluginError for another dispatch."""
        if self.dispatch == "auto":
            return possible[0]
        if self.dispatch not in possible:
            expected, fix = f"auto or one of {', '.join(possible)}, which this engine can do", "dispatch: auto"
            raise mismatch("dispatch", found=self.dispatch, expected=expected, fix=fix)
        return self.dispatch

    def topology_for(self, ep_size: int, slots_per_rank: int, hosts: list[str] | None = None) -> Topology:
        """Topology of an EP group of `ep_size` ranks; `hosts` names the host of every rank, for `auto`.

        Raises PluginError where the declared nodes and the EP size do not fit, and where `exact` knows fewer nodes.
        """
        if isinstance(self.topology, str):
            names = hosts or ["one host"] * ep_size
            topology = Topology.from_nodes([names.index(name) for name in names], slots_per_rank)
        else:
            topology = self.topology.of_ranks(ep_size, slots_per_rank)
        if self.exact is not None and topology.num_nodes > MOST_NODES:
            expected = f"at most {MOST_NODES} for exact"
            raise mismatch("nodes", found=topology.num_nodes, expected=expected, fix="exact: null")
        return topology

    def digest(self) -> str:
        """Equal on two processes only if their settings are equal."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]


def parse_config(values: Any, source: str) -> PluginConfig:
    """Validate plain data (from YAML or JSON), which may stand under the one key `eplb_plugin`.

    Raises PluginError: key, value, rule, nearest valid value.
    """
    if isinstance(values, dict) and list(values) == [KEY]:  # as the settings stand in vLLM's additional config
        values = values[KEY]
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise mismatch(source, found=type(values).__name__, expected="a mapping of settings", fix="write key: value")
    try:
        return PluginConfig.model_validate(values)
    except ValidationError as error:
        raise PluginError(f"{source}: {explain(error, PluginConfig, SECTIONS)}") from None


def load_config(path: str | os.PathLike[str]) -> PluginConfig:
    """Read a YAML file; `~` and `$NAME` in its path are expanded. Raises PluginError naming it and what is wrong."""
    try:
        text = Path(expanded(path)).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise PluginError(f"{path}: cannot be read ({reason}); fix: pass a readable YAML file") from None
    try:
        values = yaml.load(text, _UniqueKeys)
    except Exception as error:  # PyYAML lets many kinds escape: IndexError for an empty !!int, RecursionError …
        reason = str(error) if isinstance(error, (yaml.YAMLError, ValueError)) else "a value that cannot be built"
        raise PluginError(f"{path}: not valid YAML ({reason[:400]}); fix: correct the line") from None
    return parse_config(values, os.fspath(path))


class _UniqueKeys(yaml.SafeLoader):
    """YAML in which a key given twice is an error: PyYAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = getattr(key_node, "value", None)
            if isinstance(key, str):
                if key in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"key {key!r} given twice", key_node.start_mark)
                seen.add(key)
        return super().construct_mapping(node, deep)


def config_schema() -> str:
    """JSON schema of the YAML file, for editors."""
    return json.dumps(PluginConfig.model_json_schema(), indent=2)
