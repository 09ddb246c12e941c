"""Rank 0 proposes, all vote: every rank uses the plan, or none does and each knows why."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import torch.distributed as dist

from eplb_plugin import PluginError, Topology
from eplb_plugin.placement import Placement, linear_placement
from eplb_plugin.plan_types import Plan
from eplb_plugin.planning.planner import plan_of
from eplb_plugin.runtime.agreement import KEEP, agree, broadcast, reason, unanimous
from eplb_plugin.runtime.plan_codec import encode, encode_error
from processes import run_ranks

TOPOLOGY = Topology(1, 3, 2)
IN_FORCE = plan_of(linear_placement(1, 4, 6), TOPOLOGY, "hash")
NEXT = plan_of(Placement(IN_FORCE.placement.phy2log[:, ::-1].copy()), TOPOLOGY, "hash")


def agreed(case: str) -> tuple[Any, str, list[str]]:
    """-> what this rank gets, why not, and what was done in which order."""
    rank, done = dist.get_rank(), []

    def use(plan: Plan) -> str:
        if case == "refused by 1" and rank == 1:
            raise PluginError("no room")
        if case == "crashed on 2" and rank == 2:
            raise ZeroDivisionError("first\nsecond")
        done.append("used")
        return plan.digest

    @contextmanager
    def voting() -> Any:
        done.append("voting")
        yield
        done.append("voted")

    message = {"no plan": encode_error("planning failed"), "nothing": KEEP}.get(case, encode(NEXT))
    used, why, _ = agree(message if rank == 0 else b"not mine", IN_FORCE, dist.group.WORLD, use, voting())
    return used, why, done


def cases() -> dict[str, Any]:
    return {case: agreed(case) for case in ("fits", "refused by 1", "crashed on 2", "no plan", "nothing")}


def test_all_ranks_use_a_plan_or_none_does() -> None:
    """What `use` made on each rank; else None on all, with the own reason or that another rank had one."""
    found = run_ranks(3, cases)
    other = "another rank did not accept the plan"
    for rank, by_case in enumerate(found):
        assert by_case["fits"] == (NEXT.digest, "", ["used", "voting", "voted"])
        assert by_case["refused by 1"][:2] == (None, "no room" if rank == 1 else other)
        crashed = "ZeroDivisionError: first second"
        assert by_case["crashed on 2"][:2] == (None, crashed if rank == 2 else other)
        assert by_case["nothing"] == (IN_FORCE.digest, "", ["used"]), "a vote on what all have"
        assert by_case["no plan"] == (None, "planning failed", ["voting", "voted"])


def in_a_part_of_the_ranks() -> Any:
    """Ranks 1 and 2 of three, where rank 1 is the group's first."""
    group = dist.new_group([1, 2])
    if dist.get_rank() == 0:
        return None
    sent = bytes(range(256)) * 40 if dist.get_rank() == 1 else b""
    received = broadcast(sent, group)
    first = dist.get_rank() == 1
    votes = [unanimous(not first, first, group), unanimous(True, not first, group)]
    return received == bytes(range(256)) * 40, votes


def test_the_first_rank_of_a_group_need_not_be_the_first_of_all() -> None:
    """Its message and its wish reach the others, whatever they hand in; one rank's no is the answer of all."""
    votes = [(False, True), (True, False)]
    assert run_ranks(3, in_a_part_of_the_ranks) == [None, (True, votes), (True, votes)]


def test_reasons_are_one_line() -> None:
    """Ours as they are, others' with their type."""
    assert reason(PluginError("a:  b\nc")) == "a: b c"
    assert reason(KeyError("x")) == "KeyError: 'x'"
