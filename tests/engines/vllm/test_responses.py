"""The reader of returned routing, against what vLLM itself writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from vllm.entrypoints.openai.completion.protocol import CompletionResponseChoice
from vllm.utils.serial_utils import numpy2base64

from eplb_plugin.workloads.trace import read_window


def test_a_choice_of_vllms_is_read(tmp_path: Path) -> None:
    """Its own class and encoding, uint8 as for models of up to 256 experts."""
    rows = np.array([[[0, 0], [9, 2]], [[0, 0], [7, 3]]], np.uint8)
    choice = CompletionResponseChoice(index=0, text="x", routed_experts=numpy2base64(rows))
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps({"choices": [choice.model_dump()]}) + "\n")
    window = read_window(path)
    assert window.layer_ids.tolist() == [1]
    assert window.load[0].nonzero()[0].tolist() == [2, 3, 7, 9]
