"""What stays where it is when experts move: it must be the same on every rank, or it describes experts that have left.

That is what all experts of a layer share (static scales of activations) and what a kernel keeps for every expert beside
the layer's parameters, if all entries are alike (strides, limits of an activation). Engines take the scale of
activations for the largest of a rank's own experts: where ranks differ in that alone, the largest of all ranks serves
every expert, and is put in its place.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from ..errors import PluginError, mismatch

logger = logging.getLogger("eplb_plugin")

INPUT_SCALES = ("w13_input_scale", "w2_input_scale")
_FIX = "use the engine's own EPLB for this model, and report the tensor"
# Of a layer that has nothing else, no tensor was computed from a scale of its activations.
_PLAIN = re.compile(r"w(13|2)_(weight|weight_scale|weight_scale_inv|bias|weight_bias|input_scale)")


@dataclass(frozen=True, eq=False)
class Unmoved:
    """values: by name, of one layer, what has to be the same on all ranks.

    plain: whether a scale of activations may be raised, because nothing that moves was computed from it.
    """

    values: Mapping[str, torch.Tensor]
    plain: bool


def unmoved(
    layer: object, tensors: Mapping[str, torch.Tensor], sizes: Collection[int], per_call: Collection[str] = ()
) -> Unmoved:
    """Of a layer's own tensors (parameters and buffers by name) and of what it keeps beside them.

    Looks through the attributes of `layer` and of the objects, lists and mappings in them (quantisation methods,
    kernels, their settings). sizes: experts of this rank, in whatever way they are counted. per_call: attributes that
    are left out, whatever object has them: written anew in every call, or an all-to-all's.
    Raises PluginError, with the path, for a tensor of so many entries beside `tensors` that are not all alike.
    """
    values = {name: _entry(one) for name, one in tensors.items() if _is_shared(name, one, sizes)}
    for path, one in _beside(layer, tensors, per_call):
        if one.dim() == 0 or one.shape[0] not in sizes or one.numel() <= 1:  # with one slot, shapes tell nothing
            if one.numel() == 1 and one.is_floating_point():  # may be computed from a scale
                values[path] = one
        elif one.shape[0] > 1:
            if not _is_alike(one):
                expected = "a parameter, or entries that are all alike"
                raise mismatch(path, found=f"{list(one.shape)} {one.dtype}", expected=expected, fix=_FIX)
            values[path] = one[0]
    return Unmoved(values, all(_PLAIN.fullmatch(name) for name in tensors))


def refuse_unequal_values(find: Callable[[], Mapping[str, Unmoved]], group: dist.ProcessGroup) -> None:
    """Collective over a CPU group, before graphs are captured: what `find` finds must be the same on all ranks.

    find: returns what does not move, by the layer's name. Where only scales of activations differ, every rank gets the
    largest, which is logged once.
    Raises PluginError, on every rank, if anything else differs, or if `find` does on any rank.
    """
    values, facts, problem = {}, {}, ""
    try:
        for layer, found in find().items():
            for name, value in found.values.items():
                title = f"{layer}: {name}"
                values[title], facts[title] = value, (_bits(value), found.plain and name in INPUT_SCALES)
    except PluginError as error:
        problem = str(error)
    digest = hashlib.sha256(repr(sorted(facts.items())).encode()).hexdigest()
    told = _gathered((problem, digest), group)
    for other, _ in told:
        if problem or other:
            raise PluginError(problem or other)
    if len({digest for _, digest in told}) > 1:  # seldom, and then every rank says what it has
        _raise_scales(values, _gathered(facts, group), group)


def _raise_scales(
    values: Mapping[str, torch.Tensor], told: list[dict[str, tuple[str, bool]]], group: dist.ProcessGroup
) -> None:
    """told: of every rank, by name, the bits of a value, and whether it is a scale that may be raised."""
    differing = [name for name in sorted(set().union(*told)) if len({rank.get(name) for rank in told}) > 1]
    for name in differing:
        ranks = [rank.get(name, ("", False)) for rank in told]
        if not all(may_rise for _, may_rise in ranks):
            other = next(number for number, one in enumerate(ranks) if one != ranks[0])
            found, expected = (
                f"other values on rank {other} than on rank 0",
                "equal ones: it does not move with experts",
            )
            raise mismatch(name, found=found, expected=expected, fix=_FIX)
    scales = [values[name] for name in differing]
    largest = torch.cat([one.flatten().float().cpu() for one in scales])
    dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
    with torch.inference_mode():
        for scale, value in zip(scales, torch.split(largest, [one.numel() for one in scales]), strict=True):
            scale.copy_(value.view(scale.shape))
    if dist.get_rank(group) == 0:
        logger.info(
            "%d static scales of activations were the largest of each rank's own experts, and are now the largest of "
            "all, so that an expert's output does not depend on its rank", len(scales),
        )  # fmt: skip


def _gathered(own: Any, group: dist.ProcessGroup) -> list[Any]:
    told: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(told, own, group=group)
    return told


def _is_shared(name: str, tensor: torch.Tensor, sizes: Collection[int]) -> bool:
    """Whether it has one entry for all experts. With one slot a rank only names can tell that from an expert's own."""
    if tensor.dim() == 0 or (tensor.numel() == 1 and (name in INPUT_SCALES or 1 not in sizes)):
        return True
    return tensor.numel() > 1 and tensor.shape[0] in sizes and tensor.stride(0) == 0


def _entry(tensor: torch.Tensor) -> torch.Tensor:
    """Of a broadcast tensor the one entry that there is in memory, to be read and written."""
    broadcast = tensor.dim() > 0 and len(tensor) > 1 and tensor.stride(0) == 0
    return tensor.detach()[0] if broadcast else tensor.detach()


def _beside(
    layer: object, tensors: Mapping[str, torch.Tensor], per_call: Collection[str]
) -> list[tuple[str, torch.Tensor]]:
    """(path, tensor) in memory that is none of `tensors`', once each."""
    seen: set[int] = set()
    memory = {tensor.untyped_storage().data_ptr() for tensor in tensors.values()}
    ahead: list[tuple[str, Any]] = [(type(layer).__name__, layer)]
    found = []
    while ahead:
        path, one = ahead.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, torch.Tensor):
            if one.untyped_storage().data_ptr() not in memory:
                found.append((path, _entry(one)))
        elif isinstance(one, Mapping):
            ahead += [(f"{path}[{key!r}]", value) for key, value in one.items() if key not in per_call]
        elif isinstance(one, (list, tuple)):
            ahead += [(f"{path}[{index}]", value) for index, value in enumerate(one)]
        elif not isinstance(one, (type, str, bytes)) and not callable(getattr(one, "__code__", None)):
            inner = getattr(one, "__dict__", {})
            ahead += [(f"{path}.{name}", value) for name, value in inner.items() if name not in per_call]
    return found


def _is_alike(tensor: torch.Tensor) -> bool:
    """Whether all entries of the first dimension are the same, bit for bit."""
    rows = tensor.contiguous().view(len(tensor), -1).view(torch.uint8)
    return bool((rows == rows[:1]).all())


def _bits(tensor: torch.Tensor) -> str:
    plain = tensor.detach().contiguous().reshape(-1).view(torch.uint8).cpu().numpy().tobytes()
    return f"{tensor.dtype}{list(tensor.shape)}{hashlib.sha256(plain).hexdigest()}"
