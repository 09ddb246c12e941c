"""Train the model: a Qwen3-MoE of the engines' own kind, on every kind of text alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from . import experts

WARM_UP = 0.04  # of the steps


@dataclass(frozen=True)
class Recipe:
    """All that decides what is learned; a model is kept under its digest. Raise `version` with any other change."""

    version: int = 1
    layers: int = 4
    experts: int = 32
    top_k: int = 4
    hidden: int = 512
    intermediate: int = 64  # of an expert
    vocabulary: int = 2048
    sequence: int = 256
    batch: int = 4
    steps: int = 1500
    minutes: float = 13.0  # at most; on a slow machine training ends with fewer steps
    learning_rate: float = 2e-3
    balancing: float = 1e-2  # weight of the auxiliary loss: little, so that experts may specialise
    seed: int = 0


def new_model(recipe: Recipe) -> Qwen3MoeForCausalLM:
    """Untrained. Nothing of its routing is made up: what the router does later it has learned."""
    torch.manual_seed(recipe.seed)
    config = Qwen3MoeConfig(  # type: ignore[call-arg]  # it takes head_dim, and does not say so
        vocab_size=recipe.vocabulary, hidden_size=recipe.hidden, intermediate_size=2 * recipe.hidden,
        num_hidden_layers=recipe.layers, num_attention_heads=4, num_key_value_heads=2, head_dim=64,
        moe_intermediate_size=recipe.intermediate, num_experts=recipe.experts, num_experts_per_tok=recipe.top_k,
        norm_topk_prob=True, max_position_embeddings=4096, tie_word_embeddings=False,
        router_aux_loss_coef=recipe.balancing, bos_token_id=0, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    return Qwen3MoeForCausalLM(config)


def train(
    model: Qwen3MoeForCausalLM, tokens: dict[str, torch.Tensor], recipe: Recipe, report: Callable[[str], None]
) -> int:
    """Adam, with a learning rate that falls to zero at the last step or at the end of the time -> steps taken."""
    model.set_experts_implementation(experts.NAME)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.05, fused=True
    )
    batches = _batches(tokens, recipe)
    began, step, average = time.monotonic(), 0, math.log(recipe.vocabulary)
    while (done := max(step / recipe.steps, (time.monotonic() - began) / (60 * recipe.minutes))) < 1:
        for group in optimizer.param_groups:
            warm = min(1.0, (step + 1) / (WARM_UP * recipe.steps))
            group["lr"] = recipe.learning_rate * warm * (0.5 + 0.5 * math.cos(math.pi * done))
        batch = next(batches)
        with torch.autocast("cpu", torch.bfloat16):  # products in bf16, weights and their sums in fp32
            loss = model(batch, labels=batch, output_router_logits=True).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average += 0.05 * (loss.item() - average)
        step += 1
        if step % 25 == 0:
            speed = step * batch.numel() / (time.monotonic() - began)
            report(f"{done:4.0%}, step {step}, {speed:.0f} tokens/s, loss {average:.2f}")
    model.set_experts_implementation("eager")  # the engines' and everyone's own again
    model.eval()
    return step


def _batches(tokens: dict[str, torch.Tensor], recipe: Recipe) -> Iterator[torch.Tensor]:
    """[batch, sequence], every sequence of one kind, kinds in turn, at random places."""
    generator = torch.Generator().manual_seed(recipe.seed)
    turn, kinds = 0, list(tokens.values())
    while True:
        rows = []
        for _ in range(recipe.batch):
            text = kinds[turn % len(kinds)]
            turn += 1
            at = int(torch.randint(len(text) - recipe.sequence, (1,), generator=generator))
            rows.append(text[at : at + recipe.sequence])
        yield torch.stack(rows)
