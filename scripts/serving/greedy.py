"""Greedy completions of fixed prompts: the same tokens must come back however the experts are placed."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

from eplb_plugin.bench.engine import Completion
from eplb_plugin.bench.server import Server


def prompts(count: int, vocabulary: int = 2000, seed: int = 7) -> list[list[int]]:
    """Random token ids; the first ids of a vocabulary are special tokens and are left out."""
    draw = random.Random(seed)
    return [[draw.randrange(10, vocabulary) for _ in range(draw.randint(8, 60))] for _ in range(count)]


PROMPTS = prompts(16)
TOKENS = 24


def complete(server: Server, prompt: list[int]) -> Completion:
    return server.engine.completion(server.post(*server.engine.completion_request(server.model, prompt, TOKENS)))


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
