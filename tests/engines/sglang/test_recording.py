"""What SGLang's recorder is given, in the plugin's, where SGLang maps by itself."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from eplb_plugin.engines.sglang.recording import PassRecording
from eplb_plugin.recording.recorder import Recorder

CPU = torch.device("cpu")
PHY2LOG = torch.tensor([[0, 1, 2, 1], [2, 0, 1, 2]])  # of decoder layers 4 and 5; the second is recorded
IDS = torch.tensor([[0, 1], [3, 2], [-1, -1], [1, 4]], dtype=torch.int32)  # padding; slot 4 is a shared expert's


def engine_recorder(layer: int, disabled: bool = False) -> SimpleNamespace:
    return SimpleNamespace(
        _current_layer_idx=SimpleNamespace(value=layer),
        _current_forward_pass_id=SimpleNamespace(value=7),
        _disable_all=disabled,
        _expert_location_metadata=SimpleNamespace(physical_to_logical_map={4: PHY2LOG[0], 5: PHY2LOG[1]}),
    )


def recorded(*passes: tuple[int, bool]) -> Recorder:
    recorder = Recorder(1, 3, 2, 8, 16, CPU)
    recording = PassRecording(recorder, [5], mapped=False)
    recording.begin(4)
    for layer, disabled in passes:
        recording.stage(engine_recorder(layer, disabled), IDS)
    recorder.fold()
    return recorder


def test_slots_are_counted_as_their_experts() -> None:
    """Every copy of an expert is that expert; padding and slots of shared experts are nobody."""
    found = recorded((5, False))
    assert found.load.tolist() == [[2, 1, 2]]
    np.testing.assert_array_equal(found.sample[0, :3], [[2, 0], [2, 1], [0, -1]])


def test_two_copies_of_an_expert_are_that_expert_twice() -> None:
    """Slots that differ may be of one expert: such a row is no routing, and is counted as left out alone."""
    recorder = Recorder(1, 3, 2, 8, 16, CPU)
    recording = PassRecording(recorder, [5], mapped=False)
    recording.begin(3)
    recording.stage(engine_recorder(5), torch.tensor([[0, 3], [-1, 2], [1, 3]]))
    recorder.fold()
    assert recorder.totals.tolist() == [[1, 1, 1, 2, 1]]
    np.testing.assert_array_equal(recorder.sample[0, :2], [[-1, 1], [0, 2]])


@pytest.mark.parametrize("passed", [(4, False), (5, True)])
def test_what_is_not_recorded(passed: tuple[int, bool]) -> None:
    """Layers that are none of the model's MoE layers, and what SGLang disables."""
    assert not recorded(passed).load.any()


def test_compiled_as_a_whole() -> None:
    """No shape and no branch follows from the ids: what a captured graph needs; there is none on a CPU."""
    recorder = Recorder(1, 3, 2, 8, 16, CPU)
    recording = PassRecording(recorder, [5], mapped=False)
    recording.begin(4)
    torch.compile(recording.stage, backend="eager", fullgraph=True)(engine_recorder(5), IDS)
    recorder.fold()
    assert recorder.load.tolist() == [[2, 1, 2]]
