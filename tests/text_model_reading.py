"""What the tests of both engines' readers share: a prompt file, and what a client is to read from it."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from lab.text_model.prompts import Part, make_requests, write_prompts

PARTS = (Part(("programs",), 7, (16, 64), (4, 16)), Part(("prose", "licences"), 6, (16, 32), (4, 8)))
Read = list[tuple[str, int, int]]  # prompt, its tokens, tokens to ask for


def written(folder: Path, tokenizer: PreTrainedTokenizerBase) -> tuple[list[str], Read]:
    """Arguments of either client, and the requests in the order of the schedule."""
    requests, file = make_requests(PARTS, tokenizer), folder / "prompts.json"
    write_prompts(file, requests)
    expected = [
        (one.prompt, *(len(tokenizer(text)["input_ids"]) for text in (one.prompt, one.output))) for one in requests
    ]
    common = ["--dataset-name", "sharegpt", "--dataset-path", str(file), "--num-prompts", str(len(requests))]
    return [*common, "--seed", "0"], expected
