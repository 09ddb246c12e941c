"""What the meter counts in SGLang's forwards."""

from types import SimpleNamespace

import pytest
import torch
from eplb_cpu_engines.meter import read_meter
from eplb_cpu_engines.sglang import metering
from sglang.srt.model_executor.model_runner import ModelRunner

NONE = -1
ROUTED = torch.tensor([[0, 3], [NONE, NONE], [1, 2], [2, NONE]], dtype=torch.int32)  # the second row is padding


@pytest.fixture
def steps(monkeypatch, tmp_path):
    """Forwards of one of two ranks with four experts, EPLB off, in windows of one step."""
    monkeypatch.setenv("EPLB_METER_DIR", str(tmp_path))
    monkeypatch.setenv("EPLB_METER_WINDOW", "1")
    monkeypatch.setattr(metering, "_meter", None)
    monkeypatch.setattr(metering, "get_global_expert_location_metadata", lambda: None)
    parallel = SimpleNamespace(moe_ep_rank=0, moe_ep_size=2, tp_size=2)
    monkeypatch.setattr(metering, "get_parallel", lambda: parallel)
    monkeypatch.setattr(metering, "get_exec", lambda: SimpleNamespace(moe=SimpleNamespace(moe_a2a_backend="none")))
    route = metering._recorded(lambda **kwargs: (None, None, ROUTED))

    def forward(is_draft: bool = False) -> None:
        runner = ModelRunner.__new__(ModelRunner)
        runner.is_draft_worker = is_draft
        layer = {"layer_id": 5, "router_logits": torch.zeros(4, 4)}
        metering._ending_a_step(lambda self: route(**layer))(runner)

    return forward, parallel


def other_rank(tmp_path) -> None:
    """The other rank saw the same tokens, as every rank does without an all-to-all."""
    for line in (tmp_path / "rank0.jsonl").read_text().splitlines(keepends=True):
        with (tmp_path / "rank1.jsonl").open("a") as file:
            file.write(line.replace('"rank": 0', '"rank": 1'))


def test_padding_and_drafts_are_left_out_and_a_token_counts_once(steps, tmp_path):
    forward, _ = steps
    forward()
    forward(is_draft=True)
    forward()
    other_rank(tmp_path)
    meter = read_meter(tmp_path)
    assert meter["layers"] == ["layer 5"]
    assert meter["window"].tolist() == [0, 1]
    assert meter["tokens"].tolist() == [3, 3]
    assert meter["selections"].tolist() == [[[2, 3]], [[2, 3]]]
    assert meter["copies_per_token"].tolist() == [1, 1]  # from node 0: every token reaches node 1 too


def test_ranks_outside_expert_parallelism_are_refused(steps):
    forward, parallel = steps
    parallel.tp_size = 4
    with pytest.raises(RuntimeError, match="found ep_size 2, expected ep_size 4"):
        forward()
