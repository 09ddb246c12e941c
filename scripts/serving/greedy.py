"""Greedy completions of fixed prompts: the same tokens must come back however the experts are placed."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from .server import Server


@dataclass(frozen=True)
class Completion:
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]


def prompts(count: int, vocabulary: int = 2000, seed: int = 7) -> list[list[int]]:
    """Random token ids; the first ids of a vocabulary are special tokens and are left out."""
    draw = random.Random(seed)
    return [[draw.randrange(10, vocabulary) for _ in range(draw.randint(8, 60))] for _ in range(count)]


PROMPTS = prompts(16)
TOKENS = 24


def complete(server: Server, prompt: list[int]) -> Completion:
    answer = server.post(
        "/v1/completions",
        {
            "model": str(server.model),
            "prompt": prompt,
            "max_tokens": TOKENS,
            "temperature": 0,
            "logprobs": 1,
            "ignore_eos": True,
            "return_token_ids": True,
        },
    )
    choice = answer["choices"][0]
    return Completion(tuple(choice["token_ids"]), tuple(choice["logprobs"]["token_logprobs"]))


def complete_all(server: Server, clients: int = 8) -> list[Completion]:
    """Answers to PROMPTS, asked by several clients at once."""
    with ThreadPoolExecutor(clients) as pool:
        return list(pool.map(lambda prompt: complete(server, prompt), PROMPTS))


def largest_difference(one: list[Completion], other: list[Completion]) -> float:
    """Largest difference of log-probabilities; infinite if any token differs."""
    if [completion.tokens for completion in one] != [completion.tokens for completion in other]:
        return float("inf")
    pairs = zip(one, other, strict=True)
    return max(abs(a - b) for x, y in pairs for a, b in zip(x.logprobs, y.logprobs, strict=True))
