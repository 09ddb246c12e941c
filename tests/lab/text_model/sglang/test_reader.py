"""`sglang.bench_serving` reads our prompt files, in our order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sglang.benchmark import serving
from transformers import PreTrainedTokenizerFast

from text_model_reading import written


class Seen(Exception):
    """The client has read its requests; no server is needed for that."""


def test_the_client_gives_the_schedule(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every prompt, lengths as made, the shift where it was put: by the client's own command, seeds and all."""
    words, expected = written(tmp_path, tokenizer)
    tokenizer.save_pretrained(tmp_path / "model")
    read: list[Any] = []
    own = serving.get_dataset

    def keep(*arguments: Any) -> None:
        read.extend(own(*arguments))
        raise Seen

    monkeypatch.setattr(serving, "get_dataset", keep)
    command = [
        "bench_serving",
        "--backend",
        "sglang",
        "--model",
        str(tmp_path / "model"),
        "--ready-check-timeout-sec",
        "0",
    ]
    monkeypatch.setattr("sys.argv", [*command, "--tokenizer", str(tmp_path / "model"), *words])
    with pytest.raises(Seen):
        serving.cli_main()
    assert [(one.prompt, one.prompt_len, one.output_len) for one in read] == expected
