"""A byte-level BPE tokenizer of all kinds of text, and their tokens in a row."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
Kinds = dict[str, list[str]]
_EXCERPT, _DOCUMENTS = 20_000, 60  # characters of a document, and documents of a kind, that the vocabulary is made from


def make_tokenizer(kinds: Kinds, vocabulary: int) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=list(SPECIAL), show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    tokenizer.train_from_iterator((text[:_EXCERPT] for texts in kinds.values() for text in texts[:_DOCUMENTS]), trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=SPECIAL[2], pad_token=SPECIAL[0])
    fast.chat_template = CHAT_TEMPLATE
    return fast


def encode(kinds: Kinds, tokenizer: PreTrainedTokenizerFast) -> dict[str, torch.Tensor]:
    """kind -> all its documents in a row, [tokens], each with an end mark."""
    # the Rust tokenizer itself: transformers would make dictionaries, masks and offsets of every document
    engine, end = tokenizer.backend_tokenizer, tokenizer.pad_token_id
    return {
        kind: torch.cat([torch.tensor([*found.ids, end]) for found in engine.encode_batch_fast(texts)])
        for kind, texts in kinds.items()
    }
