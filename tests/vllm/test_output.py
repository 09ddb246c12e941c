"""The promise that matters most: the model's output does not change, however often experts are moved."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from eplb_cpu_engines.meter import read_meter

from eplb_plugin import Placement, Plan, Topology
from eplb_plugin.bench.engine import Completion, Eplb, Layout
from eplb_plugin.bench.server import Server
from eplb_plugin.bench.vllm import RUNNER_V1 as V1
from eplb_plugin.planning.planner import plan_of
from eplb_plugin.planning.score import count_routed
from eplb_plugin.runtime.plan_codec import accept
from server_plugins import TRITON
from serving.greedy import complete_all, largest_difference
from witnesses import look_at

pytestmark = pytest.mark.server

# one window a forecast: each of them surprises the planner again, so that it moves much
SETTINGS = "policy: {policy}\ndispatch: {rule}\ntopology: {{nodes: {nodes}}}\nsample_rows: 1024\nforecast_windows: 1\n"
# fp32 sums are ordered by the placement; a wrong expert changes log-probabilities by orders of magnitude more
TOLERANCE = 1e-4
REBALANCES, REBALANCES_V1 = 15, 50  # Triton's interpreter, which V2 needs, takes twice the time


def moves_planned(server: Server) -> list[int]:
    """Slots that each rebalance moves, from the planning rank's log."""
    return [int(count) for count in re.findall(r"(\d+) of \d+ slots move", server.text())]


CASES = [
    # model, layout, redundant experts (many, but not every expert on every rank, so that experts do move), async (EPLB
    # and scheduling), rule, environment: model runner V1, which GPUs do not run, or the plugin's kernel as on a GPU
    pytest.param("qwen3_moe", Layout(tensor_parallel=2), 16, False, "weighted", V1, id="tp2-sync-v1"),
    pytest.param("qwen3_moe", Layout(data_parallel=2), 16, True, "weighted", TRITON, id="dp2-async-triton"),
    pytest.param("qwen3_moe", Layout(2, 2), 32, True, "weighted", {}, id="tp2dp2-sequence-parallel-async"),
    pytest.param("qwen3_moe", Layout(data_parallel=2), 16, False, "hash", TRITON, id="dp2-sync-hash-triton"),
    pytest.param("qwen3_moe", Layout(data_parallel=2), 16, True, "cover", TRITON, id="dp2-async-cover-triton"),
    pytest.param("glm4_moe", Layout(2, 2), 32, False, "cover", {}, id="tp2dp2-not-sequence-parallel-sync-cover"),
    # the plugin gives this one its EPLB, without redundant experts
    pytest.param("olmoe", Layout(tensor_parallel=2), 0, False, "hash", V1, id="olmoe-rearranged"),
    *(
        pytest.param(*case, marks=pytest.mark.full, id=name)
        for name, case in {
            "tp2dp2-sequence-parallel-sync-hash": ("qwen3_moe", Layout(2, 2), 32, False, "hash", {}),
            "tp2dp2-not-sequence-parallel-sync": ("glm4_moe", Layout(2, 2), 32, False, "weighted", {}),
            "dp2-async-v1": ("qwen3_moe", Layout(data_parallel=2), 16, True, "weighted", V1),
            "tp2-async-hash-v1": ("qwen3_moe", Layout(tensor_parallel=2), 16, True, "hash", V1),
            "tp2dp2-not-sequence-parallel-async": ("glm4_moe", Layout(2, 2), 32, True, "weighted", {}),
            "tp2dp2-not-sequence-parallel-sync-hash": ("glm4_moe", Layout(2, 2), 32, False, "hash", {}),
            "tp2-sync-cover": ("qwen3_moe", Layout(tensor_parallel=2), 16, False, "cover", {}),
            "tp2dp2-sequence-parallel-async-cover": ("qwen3_moe", Layout(2, 2), 32, True, "cover", {}),
            "qwen2-moe-rearranged": ("qwen2_moe", Layout(data_parallel=2), 0, True, "hash", V1),
            "mixtral-replicated": ("mixtral", Layout(tensor_parallel=2), 16, False, "weighted", V1),
            "ernie-replicated": ("ernie4_5_moe", Layout(data_parallel=2), 16, True, "weighted", {}),
            "glm-dp2-async": ("glm4_moe", Layout(data_parallel=2), 16, True, "weighted", {}),
        }.items()
    ),
]


@pytest.mark.parametrize(("model", "layout", "redundant", "use_async", "rule", "environment"), CASES)
def test_output_is_unchanged_over_many_rebalances(
    model: str,
    layout: Layout,
    redundant: int,
    use_async: bool,
    rule: str,
    environment: dict[str, str],
    serve: Callable[..., Server],
    reference: Callable[[str], list[Completion]],
    tmp_path: Path,
    fault_path: str,
) -> None:
    """Greedy output of 16 prompts equals the single process's in every round, over many rebalances, and every expert's
    bytes are right on every rank after each step that moved any."""
    expected = reference(model)
    has_weights = rule != "hash"  # windows end between rebalances as well, and weights are solved again
    eplb = Eplb(redundant, window_size=4, step_interval=16 if has_weights and use_async else 8, use_async=use_async)
    settings = SETTINGS.format(policy="affinity", rule=rule, nodes=layout.ranks)
    metering = {"EPLB_METER_DIR": str(tmp_path / "meter"), "EPLB_METER_WINDOW": "4"}
    control, proofs = tmp_path / "faults", tmp_path / "proofs"
    witness = {"EPLB_WITNESS": str(tmp_path / "witness"), "PYTHONPATH": fault_path}
    witness |= {"EPLB_FAULTS": str(control), "EPLB_PROOFS": str(proofs)}
    way = "flag" if layout.ranks == 2 else "environment"
    arguments = [] if use_async else ["--no-async-scheduling"]
    watched = metering | witness | environment
    server = serve(model, layout, eplb, settings, way=way, arguments=arguments, **watched)
    server.wait_ready()
    rounds, wanted = 0, REBALANCES_V1 if environment is V1 else REBALANCES
    while len(moves_planned(server)) < wanted or rounds < 2:
        assert rounds < 40, f"only {len(moves_planned(server))} rebalances in {rounds} rounds"
        assert largest_difference(expected, complete_all(server)) < TOLERANCE
        rounds += 1
    meter = read_meter(tmp_path / "meter")
    slots, moved = 4 * (32 + redundant), meter["slots_moved"]
    enough = slots * wanted // REBALANCES_V1
    assert moved > enough, f"only {moved} moves were seen in the server's maps: a wrong one would not be noticed"
    assert "refused" not in server.text()
    assert (server.text().count("re-split of ") >= 5) == has_weights
    assert look_at(tmp_path / "witness", layout.ranks) > wanted // 3
    assert ("Using V2 Model Runner" in server.text()) == (environment is not V1)
    kernel = {"cover": "tables"}.get(rule, "record")  # vLLM itself looks its tables up
    assert (f"launched by Triton: {kernel}" in server.text()) == (environment is TRITON)
    # windows of four steps, of plugin and meter: a token counted by every rank that routes it would double the ratio
    recorded = np.array([int(count) for count in re.findall(r" from (\d+) tokens", server.text())])
    assert 0.6 < recorded[recorded > 0].mean() / meter["tokens"].mean() < 1.6
    if rule == "weighted" and layout == Layout(data_parallel=2):
        counted, predicted = crossings(proofs, layout.ranks, redundant)
        assert counted > 0.1
        assert counted == pytest.approx(predicted, rel=0.02)
    if rule == "weighted" and model == "glm4_moe":
        control.write_text("owners")  # the promise would be broken by ranks of a TP group with tables of their own
        differences = []
        while len(differences) < 10 and max(differences, default=0.0) < 100 * TOLERANCE:
            differences.append(largest_difference(expected, complete_all(server)))
        assert max(differences) > 100 * TOLERANCE


def crossings(folder: Path, ranks: int, redundant: int) -> tuple[float, float]:
    """Cross-node copies per token and layer, all plans together: as counted in the server, and as `judge` has them."""
    topology = Topology(ranks, 1, (32 + redundant) // ranks)
    rows: dict[tuple[str, int], list[tuple[int, list[list[int]]]]] = {}
    counted, tokens, predicted = 0, 0, 0
    for rank in range(ranks):
        *whole, _unfinished = (folder / f"rank{rank}.jsonl").read_text().split("\n")
        for line in map(json.loads, whole):
            rows.setdefault((line["plan"], line["row"]), []).append((rank, line["ids"]))
            counted, tokens = counted + line["copies"], tokens + len(line["ids"])
    assert len({digest for digest, _ in rows}) >= 10
    for (digest, row), parts in rows.items():
        made = plan_from((folder / f"{digest}.plan").read_bytes(), topology)
        sources = np.concatenate([np.full(len(ids), rank) for rank, ids in parts])
        predicted += count_routed(np.concatenate([ids for _, ids in parts]), sources, made, row)[2].sum()
    return counted / tokens, predicted / tokens


def plan_from(message: bytes, topology: Topology) -> Plan:
    """The placement before it does not matter: only its shape is looked at."""
    layers, slots = json.loads(message.partition(b"\n")[0])["shapes"]["phy2log"]
    placed = Placement(np.tile(np.arange(slots) % 32, (layers, 1)))
    return accept(message, plan_of(placed, topology, "weighted"))


@pytest.mark.full
@pytest.mark.parametrize("policy", ["balanced", "deepseek"])
def test_other_policies_leave_the_output_unchanged(
    policy: str, serve: Callable[..., Server], reference: Callable[[str], list[Completion]]
) -> None:
    """Also with the policies that plan by load only."""
    expected = reference("qwen3_moe")
    layout = Layout(data_parallel=2)
    settings = SETTINGS.format(policy=policy, rule="hash", nodes=2)
    server = serve("qwen3_moe", layout, Eplb(16, window_size=4, step_interval=8), settings)
    server.wait_ready()
    while len(moves_planned(server)) < REBALANCES:
        assert largest_difference(expected, complete_all(server)) < TOLERANCE
    assert sum(moves_planned(server)) > 0
