"""PluginConfig: that YAML, model and schema say the same, and what the settings become."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from eplb_plugin.errors import PluginError
from eplb_plugin.settings.config import (
    BudgetConfig,
    ExactConfig,
    LoggingConfig,
    MetricsConfig,
    MigrationConfig,
    PeoConfig,
    PluginConfig,
    PriceConfig,
    RebalanceConfig,
    TopologyConfig,
    config_schema,
    load_config,
    parse_config,
)
from lab.gain_model.clusters import SHAPES
from shipped_configs import CONFIGS, commands

READY = {"deepseek_v3": "deepseek-v3", "kimi_k2": "kimi-k2", "qwen3_235b": "qwen3-235b", "glm_4_5": "glm-4.5"}
KEYS = sorted(PluginConfig.model_fields)


def test_empty_is_default(tmp_path: Path) -> None:
    """An empty file, and one of comments only, mean the defaults."""
    for text in ("", "# nothing\n"):
        (tmp_path / "settings.yaml").write_text(text)
        assert load_config(tmp_path / "settings.yaml") == parse_config({}, "") == PluginConfig()


# every value that the model accepts

counts = st.integers(1, 4096)
topologies = st.one_of(
    st.just("auto"),
    st.builds(TopologyConfig, nodes=counts, ranks_per_node=st.none() | counts),
    st.lists(st.integers(0, 7), min_size=1, max_size=8, unique=True).flatmap(
        lambda nodes: st.builds(TopologyConfig, node_of_rank=st.permutations(nodes * 2))
    ),
)

prices = st.builds(
    PriceConfig,
    link_gbps=st.floats(0.001, 1e6),
    token_bytes=st.floats(0, 1e9),
    seconds_per_selection=st.none() | st.floats(0, 1),
    horizon_steps=st.none() | st.integers(1, 10**9),
)

sms = st.none() | st.integers(1, 1024)
peos = st.builds(
    PeoConfig,
    method=st.sampled_from(["overlap-1", "overlap-2", "overlap-3", "overlap-4"]),
    num_rounds=sms,
    deepep_send_num_sms=sms,
    deepep_recv_num_sms=sms,
    up_deepgemm_num_sms=sms,
    down_deepgemm_num_sms=sms,
    stock_api=st.booleans(),
)

exacts = st.builds(ExactConfig, min_tokens=st.integers(1, 1 << 30), tolerance=st.floats(0, 1))


@st.composite
def configs(draw: st.DrawFn) -> PluginConfig:
    window, interval = draw(st.none() | st.integers(1, 10**6)), draw(st.none() | st.integers(2, 10**8))
    if window and interval:
        window, interval = min(window, interval), max(window, interval)
    policy = draw(st.sampled_from(["deepseek", "balanced", "affinity"]))
    bounds = st.none() if policy == "deepseek" else st.none() | st.integers(0, 10**6)
    return PluginConfig(
        policy=policy,
        topology=draw(topologies),
        window_size=window,
        step_interval=interval,
        resplit_windows=draw(st.integers(0, 10**6)),
        num_redundant_experts=draw(st.none() | st.integers(0, 100_000)),
        dispatch=draw(st.sampled_from(["auto", "hash", "nearest", "weighted", "cover"])),
        sample_rows=draw(st.integers(256, 65_536)),
        balance_tolerance=draw(st.floats(0, 1)),
        forecast_windows=draw(st.integers(1, 64)),
        rebalance=RebalanceConfig(
            when_balancedness_falls_by=draw(st.floats(0, 1)),
            windows=draw(st.integers(1, 1000)),
            min_steps=draw(st.integers(0, 10**8)),
        ),
        budget=BudgetConfig(max_moved_slots=draw(bounds), max_moved_slots_total=draw(bounds)),
        price=draw(st.none() | prices),
        peo=draw(st.none() | peos),
        exact=draw(st.none() | exacts),
        logging=LoggingConfig(
            level=draw(st.sampled_from(["debug", "info", "warning", "error"])), rebalances=draw(st.booleans())
        ),
        state_directory=draw(st.none() | st.just("kept")),
        initial_placement=draw(st.none() | st.just("first.safetensors")),
        metrics=MetricsConfig(per_layer_rank=draw(st.booleans())),
    )


@given(configs())
def test_round_trip(config: PluginConfig) -> None:
    """Model -> plain data -> YAML or JSON text -> model changes nothing, and equal settings have equal digests."""
    values = config.model_dump(mode="json")
    for again in (
        parse_config(values, ""),
        parse_config(yaml.safe_load(yaml.safe_dump(values)), ""),
        parse_config(json.loads(json.dumps(values)), ""),
    ):
        assert again == config
        assert again.digest() == config.digest()


@given(configs(), configs())
def test_digest_tells_settings_apart(one: PluginConfig, other: PluginConfig) -> None:
    """Different settings have different digests: ranks started with different files are found out."""
    assert (one == other) == (one.digest() == other.digest())


def test_exact_is_planned_for() -> None:
    """Where it is on, plans arrange replicas for it; by default neither."""
    assert not PluginConfig().plan_options.exact
    assert PluginConfig(exact=ExactConfig()).plan_options.exact


@pytest.mark.parametrize("topology", ["auto", TopologyConfig(nodes=63)])
def test_exact_knows_so_many_nodes(topology: Any) -> None:
    """Declared or found: one more is refused, and without it they are none of its business."""
    hosts = [f"host {rank}" for rank in range(63)]
    config = PluginConfig(exact=ExactConfig(), topology=topology)
    with pytest.raises(PluginError, match="nodes: found 63, expected at most 62 for exact; fix: exact: null"):
        config.topology_for(63, 2, hosts)
    assert config.model_copy(update={"exact": None}).topology_for(63, 2, hosts).num_nodes == 63
    assert PluginConfig(exact=ExactConfig()).topology_for(62, 2, hosts[:62]).num_nodes == 62


def test_dispatch_among() -> None:
    """auto is the first rule that the engine can do; another than those is refused with them."""
    assert PluginConfig().dispatch_among(("weighted", "hash")) == "weighted"
    assert PluginConfig(dispatch="hash").dispatch_among(("weighted", "hash")) == "hash"
    with pytest.raises(PluginError, match="dispatch: found cover, expected auto or one of weighted, hash"):
        PluginConfig(dispatch="cover").dispatch_among(("weighted", "hash"))


def test_plan_options() -> None:
    """The planner gets the file's tolerance and budget."""
    budget = {"max_moved_slots": 7, "max_moved_slots_total": 9}
    options = parse_config({"balance_tolerance": 0.25, "budget": budget}, "").plan_options
    assert (options.balance_tolerance, options.max_moved_slots, options.max_moved_slots_total) == (0.25, 7, 9)


# schema and ready files


def test_schema_says_what_the_model_says() -> None:
    """The JSON schema has every key of every section, each with a description, and refuses unknown ones."""
    schema = json.loads(config_schema())
    assert set(schema["properties"]) == set(KEYS)
    models = (
        PluginConfig, TopologyConfig, BudgetConfig, PriceConfig, MigrationConfig, PeoConfig, ExactConfig,
        LoggingConfig, MetricsConfig, RebalanceConfig,
    )  # fmt: skip
    assert set(schema["$defs"]) == {model.__name__ for model in models[1:]}
    for model in models:
        part = schema["$defs"].get(model.__name__, schema)
        assert set(part["properties"]) == set(model.model_fields)
        assert part["additionalProperties"] is False
        assert part["description"]
        for key, field in part["properties"].items():
            section = schema["$defs"].get(field.get("$ref", "").rpartition("/")[2], {})
            assert field.get("description") or section.get("description"), key
            assert "default" in field, key
    assert schema["properties"]["sample_rows"]["minimum"] == 256
    assert schema["properties"]["sample_rows"]["maximum"] == 65_536


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_ready_files_are_valid(path: Path) -> None:
    """Every file in configs/ is accepted and explains itself in its first line."""
    load_config(path)
    assert path.read_text().startswith("# ")


@pytest.mark.parametrize(("name", "shape"), READY.items())
def test_files_for_models_have_their_published_figures(name: str, shape: str) -> None:
    """The comments have the published sizes and what follows from them, and a command line for each engine that serves
    the model with the plugin.
    """
    known, text = SHAPES[shape], (CONFIGS / f"{name}.yaml").read_text()
    config, model = load_config(CONFIGS / f"{name}.yaml"), known.model
    assert isinstance(config.topology, TopologyConfig)
    ranks = config.topology.nodes * config.topology.ranks_per_node
    slots, over = divmod(model.num_experts + config.num_redundant_experts, ranks)
    assert over == 0
    groups = f"{known.groups} groups of which a token uses {known.top_groups}" if known.groups > 1 else "no groups"
    gib = 3 * model.hidden * model.intermediate * known.layers / 2**30
    for part in (
        f"{model.num_experts} experts, top-{model.top_k}, {groups},\n# {known.layers} layers with experts",
        f"hidden size {model.hidden}, an expert's intermediate size {model.intermediate}.",
        f"which is {ranks} redundant experts, takes {gib:.1f} GiB", f"# {slots} slots on a rank",
        f"--eplb-config.num_redundant_experts {config.num_redundant_experts} ", f"--data-parallel-size {ranks} ",
        f"--data-parallel-size-local {config.topology.ranks_per_node} ",
    ):  # fmt: skip
        assert part in text
    assert [one.engine for one in commands(CONFIGS / f"{name}.yaml")] == (
        ["vllm"] if "# SGLang: not with this file." in text else ["vllm", "sglang"]
    )
    for command in commands(CONFIGS / f"{name}.yaml")[1:]:
        words = command.words
        assert words[words.index("--ep-num-redundant-experts") + 1] == str(config.num_redundant_experts)
        assert words[words.index("--ep-size") + 1] == str(ranks)
        assert words[words.index("--nnodes") + 1] == str(config.topology.nodes)


def test_default_file_is_the_defaults() -> None:
    """configs/default.yaml names every setting, and with its default."""
    path = CONFIGS / "default.yaml"
    assert load_config(path) == PluginConfig()
    values = yaml.safe_load(path.read_text())
    assert set(values) == set(KEYS)
    assert set(values["budget"]) == set(BudgetConfig.model_fields)
    assert set(values["logging"]) == set(LoggingConfig.model_fields)


# topology_for


def nodes_of(values: Any, ep_size: int, hosts: list[str] | None = None) -> list[int]:
    topology = parse_config({"topology": values}, "").topology_for(ep_size, 3, hosts)
    assert topology.slots_per_rank == 3
    assert topology.num_ranks == ep_size
    return topology.node_of_rank.tolist()


def test_topology_auto() -> None:
    """auto: ranks on one host form a node, wherever they are numbered; without hosts all are on one."""
    assert nodes_of("auto", 4) == [0, 0, 0, 0]
    assert nodes_of("auto", 4, ["b", "b", "a", "a"]) == [0, 0, 1, 1]
    assert nodes_of("auto", 4, ["b", "a", "b", "a"]) == [0, 1, 0, 1]


def test_topology_auto_refuses_unequal_hosts() -> None:
    """auto: hosts with different numbers of ranks are refused with the counts."""
    with pytest.raises(PluginError, match=r"found \[1, 3\] ranks per node"):
        nodes_of("auto", 4, ["a", "b", "b", "b"])


def test_topology_declared() -> None:
    """Declared nodes win over hosts; ranks_per_node follows from the EP size where it is left out."""
    assert nodes_of({"nodes": 2}, 4, ["one"] * 4) == [0, 0, 1, 1]
    assert nodes_of({"nodes": 2, "ranks_per_node": 2}, 4) == [0, 0, 1, 1]
    assert nodes_of({"node_of_rank": [5, 9, 5, 9]}, 4) == [0, 1, 0, 1]


def test_paths_as_a_shell_would_have_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`~` and `$NAME` are expanded where the settings are read, in their own path too; what has no value is refused."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KEPT", "state")
    (tmp_path / "eplb.yaml").write_text("state_directory: $HOME/${KEPT}\ninitial_placement: ~/first.safetensors\n")
    found = load_config("~/eplb.yaml")
    assert (found.state_directory, found.initial_placement) == (f"{tmp_path}/state", f"{tmp_path}/first.safetensors")
    assert parse_config(found.model_dump(mode="json"), "another process") == found
    monkeypatch.delenv("KEPT")
    with pytest.raises(PluginError, match=r"state_directory: found \$HOME/\$\{KEPT\}, expected .*KEPT\} has a value"):
        load_config(tmp_path / "eplb.yaml")


@pytest.mark.parametrize("text", ["eplb_plugin:\n  policy: balanced\n", "policy: balanced\n"])
def test_settings_may_stand_under_the_plugins_name(text: str, tmp_path: Path) -> None:
    """A file may be the part of vLLM's additional config that is the plugin's, with its key."""
    (tmp_path / "eplb.yaml").write_text(text)
    assert load_config(tmp_path / "eplb.yaml") == PluginConfig(policy="balanced")
    with pytest.raises(PluginError, match="eplb_plugin: found unknown key"):
        parse_config({"eplb_plugin": {}, "policy": "balanced"}, "file.yaml")
