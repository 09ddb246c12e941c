"""SGLang's servers are compared with the Hugging Face model of the same checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from eplb_plugin.bench.engine import Completion, Engine
from eplb_plugin.bench.sglang import SGLANG
from serving.greedy import PROMPTS, TOKENS


@pytest.fixture(scope="session")
def engine() -> Engine:
    return SGLANG


@pytest.fixture(scope="session")
def reference(models: Callable[[str], Path]) -> Callable[[str], list[Completion]]:
    """What transformers answers, in fp32."""
    known: dict[str, list[Completion]] = {}

    def get(name: str) -> list[Completion]:
        if name not in known:
            model = AutoModelForCausalLM.from_pretrained(models(name), dtype=torch.float32)
            model.generation_config.eos_token_id = None
            known[name] = [_complete(model, prompt) for prompt in PROMPTS]
        return known[name]

    return get


def _complete(model: torch.nn.Module, prompt: list[int]) -> Completion:
    given = torch.tensor([prompt])
    answer = model.generate(
        given, attention_mask=torch.ones_like(given), max_new_tokens=TOKENS, do_sample=False,
        return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    tokens = answer.sequences[0, len(prompt) :].tolist()
    logprobs = torch.cat(answer.logits).log_softmax(-1)
    return Completion(tuple(tokens), tuple(logprobs[range(TOKENS), tokens].tolist()))
