"""Requests made of held-out text, with a schedule of kinds, in the format that both engines' load generators read."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from eplb_plugin.errors import mismatch
from eplb_plugin.files import write_atomic

from . import corpus

READER_SEED = 0  # to be passed on as --seed, with which both clients shuffle a file
_LEAST, _MOST_PROMPT, _MOST = 4, 1024, 2048  # tokens; vLLM's reader drops what lies outside, silently
_TRIES = 200


@dataclass(frozen=True)
class Part:
    """A stretch of traffic: requests whose kinds come in turn."""

    kinds: tuple[str, ...]
    requests: int
    prompt_tokens: tuple[int, int]  # least, most
    output_tokens: tuple[int, int]


@dataclass(frozen=True)
class Request:
    """output: how the text goes on; a load generator asks for as many tokens."""

    kind: str
    prompt: str
    output: str


def make_requests(parts: Sequence[Part], tokenizer: PreTrainedTokenizerBase, seed: int = 0) -> list[Request]:
    """All parts' requests in order, lengths uniform in their ranges, every one from another place of the text.

    Raises PluginError for a kind that this machine does not have, and for lengths that a client would leave out.
    """
    texts = {kind: "\n\n".join(documents) for kind, documents in corpus.kinds(held_out=True).items()}
    draw = random.Random(seed)
    for part in parts:
        _refuse_bad(part, texts)
    return [
        _cut(part.kinds[number % len(part.kinds)], texts, tokenizer, part, draw)
        for part in parts
        for number in range(part.requests)
    ]


def write_prompts(path: Path, requests: Sequence[Request], reader_seed: int = READER_SEED) -> None:
    """A ShareGPT file, read *in the order of `requests`* by `vllm bench serve --dataset-name sharegpt` and by
    `sglang.bench_serving --dataset-name sharegpt` if they get `--seed reader_seed` and as many prompts.

    Both shuffle a file before they use it, SGLang always, and a shift of kinds would be gone. So the file is written
    in the order that their shuffle puts right.
    """
    order = list(range(len(requests)))
    random.Random(reader_seed).shuffle(order)
    entries: list[dict[str, Any]] = [{} for _ in requests]
    for request, place in zip(requests, order, strict=True):
        turns = (("human", request.prompt), ("gpt", request.output))
        entries[place] = {
            "id": f"{request.kind}-{place}",
            "conversations": [{"from": who, "value": text} for who, text in turns],
        }
    write_atomic(path, json.dumps(entries, indent=1).encode())


def _cut(
    kind: str, texts: dict[str, str], tokenizer: PreTrainedTokenizerBase, part: Part, draw: random.Random
) -> Request:
    text = texts[kind]
    for _ in range(_TRIES):
        prompt, output = draw.randint(*part.prompt_tokens), draw.randint(*part.output_tokens)
        begin = text.find("\n", draw.randrange(len(text))) + 1
        excerpt = text[begin : begin + 16 * (prompt + output)]
        ends = tokenizer(excerpt, return_offsets_mapping=True)["offset_mapping"]
        if len(ends) < prompt + output:
            continue  # the end of the text, or long runs of blanks
        middle, end = ends[prompt - 1][1], ends[prompt + output - 1][1]
        made = Request(kind, excerpt[:middle], excerpt[middle:end])
        # a cut may change how the tokens before it are merged: lengths are to be what the part says
        if [len(tokenizer(one)["input_ids"]) for one in (made.prompt, made.output)] == [prompt, output]:
            return made
    expected = f"more than {part.prompt_tokens[1] + part.output_tokens[1]} tokens in a row"
    raise mismatch(f"held-out text of kind {kind}", found="too little", expected=expected, fix="ask for shorter ones")


def _refuse_bad(part: Part, texts: dict[str, str]) -> None:
    for kind in part.kinds:
        if kind not in texts:
            raise mismatch("kind of text", found=kind, expected=", ".join(texts), fix="name those that are here")
    least = min(part.prompt_tokens[0], part.output_tokens[0])
    most_prompt, most = part.prompt_tokens[1], part.prompt_tokens[1] + part.output_tokens[1]
    if least < _LEAST or most_prompt > _MOST_PROMPT or most > _MOST:
        expected = f"at least {_LEAST} tokens, prompts of at most {_MOST_PROMPT}, with output {_MOST}"
        found = f"prompts of {part.prompt_tokens}, output of {part.output_tokens}"
        raise mismatch("lengths", found=found, expected=expected, fix="a client would leave these requests out")
