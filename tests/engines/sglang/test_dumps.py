"""SGLang's recordings as statistics: written by SGLang itself, and files that are none."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sglang.srt.eplb import expert_distribution

from eplb_plugin import Placement, PluginError, RoutingStatistics, Topology, plan
from eplb_plugin.engines.sglang.dumps import EmptyRecording, read_dump
from eplb_plugin.engines.sglang.http_recorder import read_dumps

LAYERS, EXPERTS, SLOTS, TOP_K = 4, 8, 12, 3
MOE_LAYERS = [1, 2, 3]


def tokens(count: int = 40, seed: int = 0) -> np.ndarray:
    """[MoE layers, T, K] logical ids."""
    return np.argsort(np.random.default_rng(seed).random((len(MOE_LAYERS), count, EXPERTS)), axis=2)[:, :, :TOP_K]


def write_stat(path: Path, owners: int = 1) -> RoutingStatistics:
    """What _StatAccumulator.dump writes, and the statistics behind it."""
    steps = [RoutingStatistics.from_topk(tokens(seed=seed), EXPERTS) for seed in range(3)]
    counts = torch.zeros(5, LAYERS, EXPERTS, dtype=torch.int32)  # a ring of steps, not all of them used
    for step, made in enumerate(steps):
        counts[step, MOE_LAYERS] = torch.from_numpy(made.load * owners).int()
    torch.save({"rank": 0, "logical_count": counts, "average_utilization_rate_over_window": None}, path)
    return steps[0].merge(steps[1]).merge(steps[2])


@pytest.mark.parametrize("owners", [1, 4])
def test_counts(tmp_path: Path, owners: int) -> None:
    """Mode `stat`: the load of every MoE layer by its decoder-layer number, every token counted once."""
    expected = write_stat(tmp_path / "one.pt", owners)
    found = read_dump(tmp_path / "one.pt", owners)
    np.testing.assert_array_equal(found.load, expected.load)
    np.testing.assert_array_equal(found.layer_ids, MOE_LAYERS)
    assert found.coactivation is None


def test_records(tmp_path: Path) -> None:
    """Mode `per_token`: co-activation and rows too, mapped back from slots; spare columns are dropped."""
    phy2log = np.random.default_rng(1).permuted(np.tile(np.arange(SLOTS) % EXPERTS, (LAYERS, 1)), axis=1)
    log2phy = Placement(phy2log).log2phy
    records = []
    for seed in range(2):
        ids = np.full((LAYERS, 40, 8), -1)
        for row, layer in enumerate(MOE_LAYERS):
            ids[layer, :, :TOP_K] = log2phy[layer, tokens(seed=seed)[row], 0]
        records.append({"forward_pass_id": seed, "rank": 0, "gatherer_key": "primary", "forward_mode": 1,
                        "topk_ids_of_layer": torch.from_numpy(ids).int()})  # fmt: skip
    data = {"records": records, "last_physical_to_logical_map": torch.from_numpy(phy2log)}
    torch.save(data, tmp_path / "one.pt")
    expected = RoutingStatistics.from_topk(np.concatenate([tokens(seed=seed) for seed in range(2)], axis=1), EXPERTS)
    found = read_dump(tmp_path / "one.pt")
    np.testing.assert_array_equal(found.load, expected.load)
    np.testing.assert_array_equal(found.coactivation, expected.coactivation)
    np.testing.assert_array_equal(found.sample, expected.sample)
    np.testing.assert_array_equal(found.layer_ids, MOE_LAYERS)


def test_fused_shared_experts_are_left_out(tmp_path: Path) -> None:
    """SGLang appends them to every row, with ids beyond the physical experts."""
    ids = np.full((LAYERS, 40, 8), -1)
    ids[MOE_LAYERS, :, :TOP_K] = tokens()
    ids[MOE_LAYERS, :, TOP_K] = EXPERTS
    data = {"last_physical_to_logical_map": torch.arange(EXPERTS).repeat(LAYERS, 1)}
    torch.save({**data, "records": [{"topk_ids_of_layer": torch.from_numpy(ids)}]}, tmp_path / "one.pt")
    found = read_dump(tmp_path / "one.pt")
    np.testing.assert_array_equal(found.sample, tokens())
    assert found.num_experts == EXPERTS


def test_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mode `per_pass`, counted by SGLang's own gatherer: the load, mapped back from slots; ranks are added up."""
    monkeypatch.setattr(expert_distribution, "get_device", lambda: "cpu")
    phy2log = np.random.default_rng(1).permuted(np.tile(np.arange(SLOTS) % EXPERTS, (LAYERS, 1)), axis=1)
    log2phy = Placement(phy2log).log2phy
    metadata = SimpleNamespace(num_layers=LAYERS, num_physical_experts=SLOTS)
    for rank in range(2):
        gatherer, records = expert_distribution._SelectExpertsSinglePassGatherer(metadata, rank), []
        for step in range(2):
            for row, layer in enumerate(MOE_LAYERS):
                ids = log2phy[layer, tokens(seed=2 * rank + step)[row], 0]
                gatherer.on_select_experts(layer, torch.from_numpy(ids))
            records.append({"forward_pass_id": step, "rank": rank, "gatherer_key": "primary"})
            records[-1] |= {name: one.clone() for name, one in gatherer.collect().items()}
            gatherer.reset()
        data = {"records": records, "last_physical_to_logical_map": torch.from_numpy(phy2log)}
        torch.save(data, tmp_path / f"recording_{rank}.pt")
    rows = np.concatenate([tokens(seed=seed) for seed in range(4)], axis=1)
    found = read_dumps(sorted(tmp_path.iterdir()), 1)
    np.testing.assert_array_equal(found.load, RoutingStatistics.from_topk(rows, EXPERTS).load)
    np.testing.assert_array_equal(found.layer_ids, MOE_LAYERS)
    assert found.coactivation is None
    data["records"] = [{"global_physical_count": torch.ones(LAYERS, SLOTS + 1, dtype=torch.int32)}]
    torch.save(data, tmp_path / "other.pt")
    with pytest.raises(PluginError, match=r"other\.pt: records: found global_physical_count"):
        read_dump(tmp_path / "other.pt")


def test_a_dump_of_sglang_becomes_a_plan_for_vllm_and_back(tmp_path: Path) -> None:
    """SGLang counts dense layers, vLLM does not: files carry decoder-layer numbers, and are the same for both."""
    write_stat(tmp_path / "dump.pt")
    read_dump(tmp_path / "dump.pt").save(tmp_path / "trace.safetensors")
    statistics = RoutingStatistics.read(tmp_path / "trace.safetensors")
    made = plan(statistics, Topology(2, 2, 3), policy="balanced", dispatch="hash").placement
    made.save(tmp_path / "placement.safetensors")
    placed = Placement.load(tmp_path / "placement.safetensors")
    assert placed.phy2log.shape == (len(MOE_LAYERS), SLOTS)  # vLLM's maps: MoE layers only
    np.testing.assert_array_equal(placed.layer_ids, MOE_LAYERS)
    with pytest.raises(PluginError, match="layer_ids"):
        placed.moves_from(Placement(placed.phy2log, np.array([0, 1, 2])))


class Evil:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("pwned"),))


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda path: None, "cannot be read"),
        (lambda path: path.write_bytes(b""), "cannot be read"),
        (lambda path: path.write_bytes(b"no file of torch's" * 100), "cannot be read"),
        (lambda path: path.write_bytes(pickle.dumps({"logical_count": Evil()})), "cannot be read"),
        (lambda path: torch.save({"logical_count": Evil()}, path), "cannot be read"),
        (lambda path: torch.save([1, 2], path), "no recording of SGLang"),
        (lambda path: torch.save({"weights": torch.zeros(2)}, path), "no recording of SGLang"),
        (lambda path: torch.save({"logical_count": torch.zeros(2, 3)}, path), "expected counts [steps, layers, expert"),
        (lambda path: torch.save({"logical_count": -torch.ones(1, 2, 3).int()}, path), "expected counts [steps, laye"),
        (lambda path: torch.save({"logical_count": torch.zeros(1, 2, 3).int()}, path), "found no token"),
        (lambda path: torch.save({"records": [], "last_physical_to_logical_map": torch.zeros(1, 2)}, path), "no token"),
        (lambda path: torch.save({"records": [{}], "last_physical_to_logical_map": torch.zeros(1, 2)}, path), "no rec"),
        (
            lambda path: torch.save(
                {
                    "records": [{"topk_ids_of_layer": torch.full((1, 2, 2), 9)}],
                    "last_physical_to_logical_map": torch.zeros(1, 2).int(),
                },
                path,
            ),
            "expected physical ids",
        ),
    ],
)
def test_foreign_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Any, reason: str) -> None:
    """In one line that names the file, and without running what is in it."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "dump.pt"
    write(path)
    with pytest.raises(PluginError) as caught:
        read_dump(path)
    assert str(caught.value).startswith(str(path))
    assert reason in str(caught.value)
    assert "; fix: " in str(caught.value)
    assert not Path("pwned").exists()


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    """Wherever a copy broke off."""
    write_stat(tmp_path / "whole.pt")
    whole = (tmp_path / "whole.pt").read_bytes()
    for size in range(0, len(whole), max(1, len(whole) // 40)):
        (tmp_path / "part.pt").write_bytes(whole[:size])
        with pytest.raises(PluginError, match="cannot be read as a dump of SGLang"):
            read_dump(tmp_path / "part.pt")


def test_another_number_of_owners_is_refused(tmp_path: Path) -> None:
    """Counts that the given number does not divide were not counted so often."""
    write_stat(tmp_path / "one.pt", 1)
    with pytest.raises(PluginError, match="owner_group_size: found 64, expected a divisor of all counts"):
        read_dump(tmp_path / "one.pt", 64)


def test_a_rank_without_tokens_has_an_empty_recording(tmp_path: Path) -> None:
    """Not a damaged one: the other ranks' files are still a window."""
    phy2log = torch.arange(SLOTS).repeat(LAYERS, 1) % EXPERTS
    for records in ([], [{"topk_ids_of_layer": torch.empty(LAYERS, 0, 8, dtype=torch.int32)}]):
        torch.save({"records": records, "last_physical_to_logical_map": phy2log}, tmp_path / "rank_1.pt")
        with pytest.raises(EmptyRecording):
            read_dump(tmp_path / "rank_1.pt")
