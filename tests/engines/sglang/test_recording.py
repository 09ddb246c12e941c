"""From the physical ids that SGLang's recorder is given to the logical ones that ours keeps."""

from __future__ import annotations

import pytest
import torch

from eplb_plugin.engines.sglang.recording import logical_ids
from eplb_plugin.recording.recorder import Recorder

PHY2LOG = torch.tensor([2, 0, 1, 2])


def test_logical_ids() -> None:
    """Every copy of an expert is that expert; padding and slots of shared experts are nobody."""
    ids = torch.tensor([[0, 1], [3, 2], [-1, -1], [1, 4]], dtype=torch.int32)
    assert logical_ids(ids, PHY2LOG).tolist() == [[2, 0], [2, 1], [-1, -1], [0, -1]]


@pytest.mark.parametrize("rows", [1, 6, 9])
def test_nothing_depends_on_the_ids_but_values(rows: int) -> None:
    """What runs inside the forward pass can be traced as a whole: no shape and no branch follows from the ids.

    That is what a captured graph needs; there is none on a CPU.
    """

    def staged(recorder: Recorder, ids: torch.Tensor, real: torch.Tensor) -> None:
        recorder.stage_rows(1, logical_ids(ids, PHY2LOG), real)

    ids = torch.arange(2 * rows).reshape(rows, 2) % 5 - 1
    plain, traced = (Recorder(2, 3, 2, 8, 16, torch.device("cpu")) for _ in range(2))
    addresses = [traced.stage.data_ptr(), traced.load.data_ptr()]
    real = torch.tensor(rows - 1, dtype=torch.int32)
    staged(plain, ids, real)
    torch.compile(staged, backend="eager", fullgraph=True)(traced, ids, real)
    assert torch.equal(plain.stage, traced.stage)
    assert [traced.stage.data_ptr(), traced.load.data_ptr()] == addresses
    assert (plain.stage[0, 1, min(rows - 1, 8) :] == -1).all()  # padding; what is above the buffer is not kept
