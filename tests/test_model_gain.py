"""The model of gains on GPUs: every part against figures worked out by hand, and its command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from eplb_plugin import RoutingStatistics, Topology, plan, route
from eplb_plugin.observe.judging import judge_draws
from eplb_plugin.peo.cost import Traffic
from eplb_plugin.peo.presets import MODELS, PUBLISHED_TIMES, Hardware, Model, PublishedTime
from eplb_plugin.workloads.routing import ClusteredRouter
from lab.gain_model import run
from lab.gain_model.cases import BATCHES, Inputs, Row, topology_of
from lab.gain_model.clusters import CLUSTERS, SHAPES, Cluster, redundant_experts
from lab.gain_model.exchange import Exchange, counted, mean_field
from lab.gain_model.step import LayerTime, layer_time

TWO_BY_TWO = Topology(2, 2, 1)  # slot = rank; ranks 0 and 1 are one node, 2 and 3 the other
PAD = -1


def test_counts_by_hand() -> None:
    """Once per node: over RDMA to the rank with the same place there, from it over NVLink. Per selection: straight."""
    slots = np.array([[0, 2, 3], [0, 2, PAD], [3, 2, PAD]])
    sources = np.array([0, 1, 3])
    once = counted(slots, sources, TWO_BY_TWO, "per node")
    assert once.rdma_out.tolist() == [1, 1, 0, 0]
    assert once.rdma_in.tolist() == [0, 0, 1, 1]
    assert once.nvlink_out.tolist() == [0, 1, 1, 2]  # 1 -> 0; 2 -> 3 for the first; 3 -> 2 for the second and the third
    assert once.nvlink_in.tolist() == [1, 0, 2, 1]
    each = counted(slots, sources, TWO_BY_TWO, "per selection")
    assert each.rdma_out.tolist() == [2, 1, 0, 0]
    assert each.rdma_in.tolist() == [0, 0, 2, 1]
    assert each.nvlink_out.tolist() == [0, 1, 0, 1]
    assert each.nvlink_in.tolist() == [1, 0, 1, 0]
    assert (once.rdma, once.nvlink, each.scaled(10.0).rdma) == (1, 2, 20)


def test_a_token_goes_to_a_rank_once() -> None:
    """Two experts of one rank are one token over the wire, but two selections."""
    two_slots = Topology(2, 1, 2)
    slots, sources = np.array([[2, 3]]), np.array([0])
    assert counted(slots, sources, two_slots, "per node").rdma == 1
    assert counted(slots, sources, two_slots, "per selection").rdma == 2


def test_copies_are_those_of_the_planner() -> None:
    """Tokens that cross in the exchange are the cross-node copies by which plans are judged."""
    topology = Topology(4, 2, 5)
    ids = ClusteredRouter(1, 32, 4).window(2048)
    made = plan(RoutingStatistics.from_topk(ids, 32), topology, policy="deepseek", dispatch="hash")
    sources = np.random.default_rng([0, 0]).integers(0, 8, 2048)
    exchange = counted(route(ids[0], sources, made, 0), sources, topology, "per node")
    judged = judge_draws(ids, made, 1, 0).mean()
    assert exchange.rdma_in.sum() == exchange.rdma_out.sum() == pytest.approx(judged.cross_node_copies * 2048)
    by_node = exchange.rdma_in.reshape(4, 2).sum(axis=1)
    assert by_node.max() / by_node.mean() == pytest.approx(judged.busiest_ingress)


def test_mean_field_by_hand() -> None:
    """10 tokens a rank, 2 copies each; rank 0 has half of all selections, its node 1.5 times the mean arrivals."""
    exchange, shares = mean_field(2.0, 0.5, 1.5, TWO_BY_TWO, 10, 2)
    assert shares.tolist() == pytest.approx([1 / 2, 1 / 6, 1 / 6, 1 / 6])
    assert exchange.rdma_out.tolist() == [20, 20, 20, 20]
    assert exchange.rdma_in.tolist() == [30, 20, 20, 20]
    assert exchange.nvlink_in.tolist() == [20, 10, 10, 10]


def simple_cluster(nvlink_gbs: float = 4.0) -> Cluster:
    """1 TFLOPS, 1 GB/s of HBM and link, 10 µs latency, 1 µs launch, everything reachable."""
    gpu = Hardware("simple", 100, 1.0, 1.0, 1.0, 10.0, 1.0, 1.0, 1.0, 1.0, 1.0)
    return Cluster(gpu, nvlink_gbs)


def test_times_by_hand() -> None:
    """1000 tokens over RDMA, 2000 over NVLink; 128 rows for each of two experts."""
    full = np.array([1000.0, 0.0])
    exchange = Exchange(full, full[::-1], 2 * full, 2 * full)
    traffic = Traffic(Model("hand", 2, 2, 128, 256), np.array([[0.5], [0.5]]), 64)
    found = layer_time(exchange, traffic, simple_cluster())
    assert found.dispatch == pytest.approx(148.0 + 10.0 + 1.0)  # 128 values, one scale, 16 bytes of header each
    assert found.combine == pytest.approx(256.0 + 10.0 + 1.0)
    assert found.gemm == pytest.approx(65.536 + 1.0 + 32.768 + 1.0)  # 64 and 32 KiB of weights at 1 GB/s
    assert found.bound == "RDMA"
    assert found.in_turn == pytest.approx(159.0 + 267.0 + 100.304)
    assert found.overlapped == pytest.approx(159.0 + 267.0)
    slow = layer_time(exchange, traffic, simple_cluster(nvlink_gbs=1.0))
    assert (slow.bound, slow.dispatch) == ("NVLink", pytest.approx(2 * 148.0 + 11.0))


def test_the_busiest_rank_decides() -> None:
    """Selections moved to one rank lengthen the GEMMs, tokens moved to one link the exchange."""
    model = Model("hand", 4, 2, 128, 256)
    even = np.full(4, 100.0)
    uneven = np.array([400.0, 0.0, 0.0, 0.0])
    level, steep = np.full((4, 1), 0.25), np.array([[0.7], [0.1], [0.1], [0.1]])

    def time(counts: np.ndarray, shares: np.ndarray) -> LayerTime:
        none = np.zeros(4)
        return layer_time(Exchange(even, counts, none, none), Traffic(model, shares, 4096), simple_cluster())

    assert time(even, steep).gemm > 2.5 * time(even, level).gemm
    assert time(uneven, level).dispatch - 11.0 == pytest.approx(4 * (time(even, level).dispatch - 11.0))


def test_nothing_crosses_a_single_node() -> None:
    exchange, _ = mean_field(0.0, 1.0, 1.0, Topology(1, 8, 4), 128, 8)
    assert exchange.rdma == 0
    traffic = Traffic(MODELS["qwen3-235b"], np.full((8, 4), 1 / 32), 128)
    assert layer_time(exchange, traffic, CLUSTERS["H800"]).bound == "NVLink"


@pytest.mark.parametrize("published", PUBLISHED_TIMES, ids=lambda one: str(one.num_ranks))
def test_low_latency_exchange_is_near_the_published(published: PublishedTime) -> None:
    """Evenly random routing, 128 tokens: within 15 % of DeepEP's published times on 64 to 256 H800."""
    ranks = published.num_ranks
    even = np.full(ranks, 128 * 8 * (ranks - 8) / ranks)
    traffic = Traffic(MODELS["deepseek-v3"], np.full((ranks, 1), 1 / ranks), 128)
    found = layer_time(Exchange(even, even, 0 * even, 0 * even), traffic, CLUSTERS["H800"])
    assert found.dispatch == pytest.approx(published.dispatch_us, rel=0.15)
    assert found.combine == pytest.approx(published.combine_us, rel=0.15)


@pytest.mark.parametrize(("ranks", "redundant"), [(32, 32), (64, 64), (144, 32), (320, 64)])
def test_redundancy_fills_the_ranks(ranks: int, redundant: int) -> None:
    """The fewest from an eighth on: 256 experts on 32 to 320 ranks."""
    assert redundant_experts(SHAPES["deepseek-v3"], ranks) == redundant
    assert topology_of(SHAPES["deepseek-v3"], ranks, 8).num_slots == 256 + redundant


# what is said of it


def row(*, gemm: float = 10.0, after: float = 50.0) -> Row:
    one = Inputs(2.0, 0.9, 1.0)
    times = {"vanilla": LayerTime(100.0, gemm, 100.0, "RDMA"), "cover": LayerTime(after, gemm, after, "RDMA")}
    return Row(32, BATCHES[0], {"vanilla": one, "cover": one}, times)


def test_verdicts() -> None:
    """Below 2 % it is not worth it; where the exchange hides behind GEMMs, that is said."""
    assert run.worth_it(row()) == "cover"
    assert run.worth_it(row(after=99.0)) == "no"
    assert run.worth_it(row(after=120.0)) == "no"
    assert run.worth_it(row(gemm=1000.0)) == "cover; not if overlapped"
    assert run.saved(row().times["vanilla"], row().times["cover"]) == pytest.approx((100 / 210, 0.5))


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., tuple]:
    def model_gain(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["model_gain", "--out", str(tmp_path / "gain.json"), *map(str, words)])
        return run.main(), *capsys.readouterr()

    return model_gain


def test_figures_are_enough(call: Callable[..., tuple], tmp_path: Path) -> None:
    """Measured copies and balance give the rows of kernels that send once per node, and the same ones every time."""
    words = ["--ranks", "32,64", "--arm", "vanilla=4.66:0.89:1.05", "--arm", "cover=3.11:0.90:1.05"]
    code, out, err = call(*words)
    assert (code, err) == (0, "")
    assert out.startswith("A model, not a measurement")
    written = json.loads((tmp_path / "gain.json").read_text())
    assert [(one["ranks"], one["batch"]["kernels"]) for one in written["rows"]] == [
        (32, "per node"), (32, "per node"), (64, "per node"), (64, "per node"),
    ]  # fmt: skip
    assert all(one["worth_it"].startswith("cover") for one in written["rows"])
    assert call(*words)[1] == out


def test_tokens_are_planned_and_judged(
    call: Callable[..., tuple], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Made-up tokens: four arms, three batches; locality saves copies, and time where a token goes once per node."""
    monkeypatch.setattr(run, "TOKENS", 4096)
    code, out, _ = call("--ranks", 16, "--ranks-per-node", 4, "--layers", 1, "--model", "qwen3-235b")
    assert code == 0
    assert "decode, low latency, 128" in out
    decode, once, prefill = json.loads((tmp_path / "gain.json").read_text())["rows"]
    for one in (once, prefill):
        assert one["inputs"]["affinity, cover"]["copies"] < one["inputs"]["vanilla"]["copies"]
        assert one["times"]["affinity, cover"]["dispatch"] < one["times"]["vanilla"]["dispatch"]
    assert prefill["times"]["vanilla"]["dispatch"] > 10 * once["times"]["vanilla"]["dispatch"] > 0
    assert decode["times"]["vanilla"]["dispatch"] > once["times"]["vanilla"]["dispatch"]


def test_exact_is_an_arm_where_steps_are_known(
    call: Callable[..., tuple], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Timed step by step: more even than tables in the same steps, its exchange and solving counted beside."""
    monkeypatch.setattr(run, "TOKENS", 4096)
    code, _, _ = call("--ranks", 8, "--ranks-per-node", 4, "--layers", 1, "--model", "qwen3-235b", "--step-tokens", 512)
    assert code == 0
    *_, prefill = json.loads((tmp_path / "gain.json").read_text())["rows"]
    inputs, times = prefill["inputs"], prefill["times"]
    assert inputs["exact, cover"]["balancedness"] > inputs["affinity, cover"]["balancedness"] + 0.02
    assert times["exact, cover"]["gemm"] < times["affinity, cover"]["gemm"]
    assert times["exact, cover"]["quotas"] == pytest.approx(8 * 1.35 + 16)
    assert times["affinity, cover"]["quotas"] == 0.0


def test_quotas_delay_the_dispatch() -> None:
    """They are on the side of the exchange, where batches overlap."""
    one = LayerTime(10.0, 25.0, 10.0, "RDMA", 8.0)
    assert (one.in_turn, one.overlapped) == (53.0, 28.0)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--step-tokens", "70000", "--ranks", "32"], "--step-tokens: found 70000"),
        (["--ranks", "32,x"], "--ranks: found 32,x"),
        (["--ranks", "30", "--arm", "a=1:1"], "--ranks: found 30, expected a multiple of 8"),
        (["--arm", "a=1"], "--arm: found a=1"),
        (["--arm", "a=1:2"], "balancedness above 0 and at most 1"),
        (["--arm", "a=1:0.9:0.5"], "ingress >= 1"),
        (["--trace", "none.npz"], "none.npz"),
    ],
)
def test_bad_input_is_one_line(call: Callable[..., tuple], words: list[str], line: str) -> None:
    code, out, err = call(*words)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert line in err
