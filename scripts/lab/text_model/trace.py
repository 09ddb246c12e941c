"""`scripts/sample_trace`: the repository's own sample trace, what the trained model routes as it reads held-out text.

Two windows of code, and one of prose: traffic that has shifted.
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast, Qwen3MoeForCausalLM

from eplb_plugin.files import write_atomic

from . import corpus, held_out, routing
from .store import model_folder
from .tokens import encode
from .train import Recipe

TARGET = Path(__file__).resolve().parents[3] / "traces"
SEQUENCES = 24  # of a window


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/sample_trace", description=__doc__)
    parser.add_argument("--model", type=Path, help="of scripts/train_text_model; default: the one kept, or train")
    parser.add_argument("--out", type=Path, default=TARGET, help="folder (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(2)
    folder = options.model or model_folder(Recipe())
    model = Qwen3MoeForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = encode(corpus.kinds(held_out=True), PreTrainedTokenizerFast.from_pretrained(folder))
    for name, (kinds, turn) in held_out.WINDOWS.items():
        data = window(model, {kind: tokens[kind] for kind in kinds}, turn)
        file = options.out / f"{name}.npz"
        write_atomic(file, data)
        print(f"{file}: {SEQUENCES * held_out.SEQUENCE} tokens of {' and '.join(kinds)}, {len(data) / 1e3:.0f} kB")
    text = held_out.tables(options.out)
    print(text)
    if (options.out / "README.md").exists():
        held_out.write_tables(options.out / "README.md", text)
    return 0


def window(model: Qwen3MoeForCausalLM, tokens: dict[str, torch.Tensor], turn: int) -> bytes:
    """An .npz of one window, sequences of the kinds in turn: `topk_ids` [layers, tokens, k], `kinds` [names] and
    `kind_of_token` [tokens] (number of its name). turn: 0, 1 … for text that no earlier window read.
    """
    each = SEQUENCES // len(tokens)
    parts = [routing.sequences_of(text, each, held_out.SEQUENCE, skip=turn * each) for text in tokens.values()]
    in_turn = torch.stack(parts, 1).flatten(0, 1)
    topk_ids, _ = routing.read(model, in_turn)
    kind_of_token = np.arange(topk_ids.shape[1]) // held_out.SEQUENCE % len(tokens)
    return _npz(
        topk_ids=topk_ids, num_experts=np.int64(model.config.num_experts), kinds=np.array(list(tokens)),
        kind_of_token=kind_of_token.astype(np.uint8),
    )  # fmt: skip


def _npz(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
