"""`vllm bench serve` reads our prompt files, in our order."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerFast
from vllm.benchmarks.datasets import get_samples
from vllm.benchmarks.serve import add_cli_args
from vllm.utils.argparse_utils import FlexibleArgumentParser

from text_model_reading import written


def test_the_clients_reader_gives_the_schedule(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Every prompt, none left out, lengths as made, the shift where it was put."""
    words, expected = written(tmp_path, tokenizer)
    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    read = get_samples(parser.parse_args(words), tokenizer)
    assert [(one.prompt, one.prompt_len, one.expected_output_len) for one in read] == expected
