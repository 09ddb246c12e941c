"""One rank proposes, all ranks vote: what is put in force is the same on all of them, or nothing is."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from ..errors import PluginError
from ..plan_types import Plan
from .plan_codec import accept

Used = TypeVar("Used")
KEEP = None  # in place of rank 0's message: nothing shall change


def agree(
    message: bytes | None,
    in_force: Plan,
    group: dist.ProcessGroup,
    use: Callable[[Plan], Used],
    voting: AbstractContextManager[Any] | None = None,
    wish: bool = False,
) -> tuple[Used | None, str, bool]:
    """Collective: rank 0's plan, and what `use` made of it on this rank; None, and why, if any rank could not.

    voting: entered for the vote, not for the time in which the others wait for rank 0. wish: rank 0's, which all ranks
    get as the last value, whatever becomes of the plan; the others' says nothing. With KEEP all ranks use what is in
    force, which all have: there is no vote, and no wish.
    """
    received = broadcast(message, group)
    if received is KEEP:
        return use(in_force), "", False
    used, problem = None, ""
    try:
        used = use(accept(received, in_force))
    except Exception as error:  # a damaged message must end in the vote as well, or the other ranks wait forever
        problem = reason(error)
    with voting or nullcontext():
        every_rank, wished = unanimous(used is not None, wish, group)
    if every_rank:
        return used, "", wished
    return None, problem or "another rank did not accept the plan", wished


def broadcast(message: bytes | None, group: dist.ProcessGroup) -> bytes | None:
    """Send rank 0's message, which is not empty, or KEEP, to every rank of a CPU group."""
    source = dist.get_global_rank(group, 0)
    length = torch.tensor([len(message or b"")], dtype=torch.int64)
    dist.broadcast(length, src=source, group=group)
    if not length:
        return KEEP
    if dist.get_rank(group) == 0:
        buffer = torch.frombuffer(bytearray(message or b""), dtype=torch.uint8)
    else:
        buffer = torch.empty(int(length), dtype=torch.uint8)
    dist.broadcast(buffer, src=source, group=group)
    return buffer.numpy().tobytes()


def unanimous(accepted: bool, wish: bool, group: dist.ProcessGroup) -> tuple[bool, bool]:
    """Whether all ranks accepted, and rank 0's wish."""
    vote = torch.tensor([accepted, wish or dist.get_rank(group) != 0], dtype=torch.int32)
    dist.all_reduce(vote, op=dist.ReduceOp.MIN, group=group)
    every_rank, wished = vote.tolist()
    return bool(every_rank), bool(wished)


def reason(error: Exception) -> str:
    """One line."""
    text = str(error) if isinstance(error, PluginError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())
