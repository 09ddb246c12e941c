"""Train the model for a fixed time: a Qwen3-MoE of the engines' own kind, saved as any other checkpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3MoeConfig, Qwen3MoeForCausalLM

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"


@dataclass(frozen=True)
class Options:
    layers: int = 4
    experts: int = 32
    top_k: int = 4
    hidden: int = 512
    intermediate: int = 128  # of an expert
    vocabulary: int = 4096
    sequence: int = 256
    batch: int = 8
    learning_rate: float = 2e-3
    balancing: float = 1e-3  # weight of the auxiliary loss: little, so that experts may specialise
    seed: int = 0


def make_tokenizer(kinds: dict[str, list[str]], options: Options) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of all kinds."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=options.vocabulary, special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator((text[:20_000] for texts in kinds.values() for text in texts[:60]), trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=SPECIAL[2], pad_token=SPECIAL[0])
    fast.chat_template = CHAT_TEMPLATE
    return fast


def encode(kinds: dict[str, list[str]], tokenizer: PreTrainedTokenizerFast) -> dict[str, torch.Tensor]:
    """kind -> all its documents in a row, [tokens], each with an end mark."""
    end = tokenizer.pad_token_id
    return {
        kind: torch.tensor([token for ids in tokenizer(texts)["input_ids"] for token in [*ids, end]])
        for kind, texts in kinds.items()
    }


def train(
    tokens: dict[str, torch.Tensor], options: Options, seconds: float, report: Callable[[str], None]
) -> Qwen3MoeForCausalLM:
    """Adam under a learning rate that falls to zero at the end of the time; every sequence is of one kind."""
    torch.manual_seed(options.seed)
    model = Qwen3MoeForCausalLM(_config(options))
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, betas=(0.9, 0.95), weight_decay=0.05)
    batches = _batches(tokens, options)
    began, step, average = time.monotonic(), 0, math.log(options.vocabulary)
    while (spent := (time.monotonic() - began) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * min(1.0, (step + 1) / 20) * (0.5 + 0.5 * math.cos(math.pi * spent))
        batch = next(batches)
        output = model(batch, labels=batch, output_router_logits=True)
        optimizer.zero_grad()
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average += 0.05 * (output.loss.item() - average)
        step += 1
        if step % 25 == 0:
            seen = step * batch.numel()
            report(f"{spent:4.0%} of the time, {seen / 1e3:5.0f} k tokens, loss {average:.2f}")
    return model.eval()


def save(model: Qwen3MoeForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@torch.no_grad()
def route(model: Qwen3MoeForCausalLM, sequences: torch.Tensor) -> torch.Tensor:
    """Which experts the model chooses: [layers, sequences * length, k] of sequences [sequences, length]."""
    chosen = []
    for part in sequences.split(8):
        logits = model(part, output_router_logits=True).router_logits
        chosen.append(torch.stack([layer.topk(model.config.num_experts_per_tok).indices for layer in logits]))
    return torch.cat(chosen, 1)


def _batches(tokens: dict[str, torch.Tensor], options: Options) -> Iterator[torch.Tensor]:
    """[batch, sequence], kinds in turn, at random places."""
    generator = torch.Generator().manual_seed(options.seed)
    turn, kinds = 0, list(tokens.values())
    while True:
        rows = []
        for _ in range(options.batch):
            text = kinds[turn % len(kinds)]
            turn += 1
            at = int(torch.randint(len(text) - options.sequence, (1,), generator=generator))
            rows.append(text[at : at + options.sequence])
        yield torch.stack(rows)


def _config(options: Options) -> Qwen3MoeConfig:
    return Qwen3MoeConfig(
        vocab_size=options.vocabulary, hidden_size=options.hidden, intermediate_size=2 * options.hidden,
        num_hidden_layers=options.layers, num_attention_heads=8, num_key_value_heads=2, head_dim=64,
        moe_intermediate_size=options.intermediate, num_experts=options.experts, num_experts_per_tok=options.top_k,
        norm_topk_prob=True, max_position_embeddings=4096, tie_word_embeddings=False,
        router_aux_loss_coef=options.balancing, bos_token_id=0, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
