"""What a model's `config.json` says of its experts, so that nothing about a trace's shape is guessed."""

from __future__ import annotations

import json
import os
from typing import Any, NamedTuple

from ..errors import PluginError, mismatch
from ..files import read_foreign

_EXPERTS = ("n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts", "num_moe_experts")
_TOP_K = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "moe_top_k", "experts_per_token")
_LAYERS = ("num_hidden_layers", "num_layers", "n_layer")


class ModelShape(NamedTuple):
    """num_experts: routed ones of a layer; top_k, num_layers (decoder layers, dense ones too): None = not said."""

    num_experts: int
    top_k: int | None
    num_layers: int | None


def read_model_config(path: str | os.PathLike[str]) -> ModelShape:
    """Of a Hugging Face `config.json`, at its top or under `text_config`. Raises PluginError if it names no experts."""
    try:
        document = json.loads(read_foreign(path, "model configuration"))
    except (ValueError, RecursionError) as error:
        raise PluginError(f"{path}: cannot be read as JSON ({error}); fix: pass the model's config.json") from None
    return shape_in(document, path)


def shape_in(document: Any, path: str | os.PathLike[str]) -> ModelShape:
    """Of what such a file holds; path: names it in errors. Raises PluginError if it names no experts."""
    sections = [document, *(document.get(name) for name in ("text_config", "llm_config") if isinstance(document, dict))]
    for section in (one for one in sections if isinstance(one, dict)):
        experts = _count(path, section, _EXPERTS)
        if experts is not None:
            return ModelShape(experts, _count(path, section, _TOP_K), _count(path, section, _LAYERS))
    raise mismatch(str(path), found="no count of experts", expected=_EXPERTS[0], fix="pass an MoE model's config.json")


def _count(path: str | os.PathLike[str], section: dict[str, Any], names: tuple[str, ...]) -> int | None:
    for name in names:
        value = section.get(name)
        if isinstance(value, list) and value and all(one == value[0] for one in value):  # one entry per layer
            value = value[0]
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            fix = "leave layers of other sizes out, and pass --num-experts"
            raise mismatch(f"{path}: {name}", found=value, expected="one count >= 1", fix=fix)
        return value
    return None
