"""The Rebalancer over several processes: the old placement for all where one refuses, and what is reported of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist

from eplb_plugin.errors import PluginError
from eplb_plugin.placement import linear_placement
from eplb_plugin.plan_types import Plan
from eplb_plugin.planning.planner import plan_of
from eplb_plugin.runtime import agreement, proposal, rebalancer, stage_timer
from eplb_plugin.runtime.outcome import Outcome
from eplb_plugin.runtime.plan_codec import encode
from eplb_plugin.runtime.rebalancer import Rebalancer
from eplb_plugin.settings.config import PluginConfig
from eplb_plugin.topology import Topology
from processes import run_ranks
from rebalances import EXPERTS, LAYERS, OLD, SLOTS, TOKENS, Log, Result, new_entry, rebalance, record


def all_keep_the_old(results: list[Result]) -> list[str]:
    """Asserts that no rank moved and that each logged one error line; returns those."""
    errors = []
    for placed, lines in results:
        np.testing.assert_array_equal(placed, OLD)
        found = [text for level, text in lines if level == "ERROR"]
        assert len(found) == 1
        assert found[0].startswith("rebalance 1 of model refused, the old placement stays: ")
        assert len(found[0].splitlines()) == 1
        errors.append(found[0])
    return errors


def plan_refuses(rank: int) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PluginError("load: found nothing, expected something; fix: this")

    proposal.plan_for = refuse  # type: ignore[assignment]


def plan_crashes(rank: int) -> None:
    def crash(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("first line\nsecond line")

    proposal.plan_for = crash  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [(plan_refuses, "load: found nothing"), (plan_crashes, "ZeroDivisionError: first line second line")],
)
def test_planner_that_raises(spoil: Callable[[int], None], reason: str) -> None:
    """Whatever the planner raises reaches every rank as one error line, and all keep the old placement."""
    for error in all_keep_the_old(run_ranks(2, rebalance, spoil, timeout=300)):
        assert f"planning failed: {reason}" in error


def receive_wrongly(change: Callable[[bytes], bytes], rank: int) -> None:
    """The last rank receives something else than was sent."""
    if rank == dist.get_world_size() - 1:
        broadcast = agreement.broadcast
        agreement.broadcast = lambda *args: change(broadcast(*args))  # type: ignore[assignment]


def flipped_body(rank: int) -> None:
    receive_wrongly(lambda message: message[:-1] + bytes([message[-1] ^ 1]), rank)


def truncated(rank: int) -> None:
    receive_wrongly(lambda message: message[:-8], rank)


def cut_header(rank: int) -> None:
    receive_wrongly(lambda message: message[:10], rank)


def nothing(rank: int) -> None:
    receive_wrongly(lambda message: b"", rank)


def noise(rank: int) -> None:
    receive_wrongly(lambda message: bytes(range(256)), rank)


@pytest.mark.parametrize(
    ("ranks", "spoil"),
    [(2, flipped_body), (4, flipped_body), (2, truncated), (2, cut_header), (2, nothing), (2, noise)],
)
def test_damaged_message_on_one_rank(ranks: int, spoil: Callable[[int], None]) -> None:
    """One rank that did not get what was sent is enough for all to keep the old placement; the others say so."""
    errors = all_keep_the_old(run_ranks(ranks, rebalance, spoil, timeout=300))
    assert all(error.endswith("another rank did not accept the plan") for error in errors[:-1])
    assert not errors[-1].endswith("another rank did not accept the plan")


def evenly(slots: int, experts: int) -> Plan:
    return plan_of(linear_placement(LAYERS, experts, slots), Topology(2, 1, slots // 2), "hash")


def proposed(plan: Plan) -> tuple[Outcome, bytes]:
    return Outcome("model", "accepted"), encode(plan)


def propose_other_shape(rank: int) -> None:
    rebalancer.propose = lambda *_: proposed(evenly(SLOTS + 2, EXPERTS))


def propose_fewer_experts(rank: int) -> None:
    rebalancer.propose = lambda *_: proposed(evenly(SLOTS, EXPERTS - 1))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [(propose_other_shape, "plan: found phy2log [2, 26]"), (propose_fewer_experts, "found 15 experts")],
)
def test_plan_that_does_not_fit(spoil: Callable[[int], None], reason: str) -> None:
    """A whole message with a placement for other slots or experts is refused by every rank."""
    for error in all_keep_the_old(run_ranks(2, rebalance, spoil, timeout=300)):
        assert reason in error


def unequal_owners(rank: int) -> None:
    snapshot = rebalancer.snapshot
    rebalancer.snapshot = lambda recorder, group, _, layer_ids: snapshot(recorder, group, 2, layer_ids)


def test_refused_snapshot_reaches_every_rank() -> None:
    """What rank 0 finds wrong with a window every rank logs, and all keep the old placement."""
    for error in all_keep_the_old(run_ranks(2, rebalance, unequal_owners, timeout=300)):
        assert "planning failed: token-owner group 0: found ranks that recorded different routing" in error


# what is reported


def rebalance_and_report(spoil: Callable[[int], None] | None = None) -> list[tuple[str, bool]]:
    """On every rank: the results that were reported, and whether a plan was assessed."""
    told: list[tuple[str, bool]] = []
    rebalancer, entry = (
        Rebalancer(PluginConfig(), lambda outcome: told.append((outcome.result, bool(outcome.assessment)))),
        new_entry(),
    )
    rebalancer.add("key", entry, planning_rank=dist.get_rank() == 0)
    for tokens in (0, TOKENS):
        record(entry, tokens)
        if spoil is not None and tokens:
            spoil(dist.get_rank())
        rebalancer.observe("key", dist.group.WORLD)
        rebalancer.decide("key", OLD.copy(), dist.group.WORLD)
    return told


def test_outcomes_are_reported_on_the_planning_rank() -> None:
    """Skipped, accepted; and refused where another rank refused or planning failed."""
    assert run_ranks(2, rebalance_and_report, timeout=300) == [[("skipped", False), ("accepted", True)], []]
    spoilt = run_ranks(2, rebalance_and_report, flipped_body, timeout=300)
    assert spoilt == [[("skipped", False), ("refused", True)], []]
    failed = run_ranks(2, rebalance_and_report, plan_crashes, timeout=300)
    assert failed == [[("skipped", False), ("refused", False)], []]


def late(rank: int) -> None:
    """Rank 1 comes long after the others wait for it."""
    if rank == 0:
        stage_timer.STALLED_SECONDS = 0.3
    else:
        time.sleep(2.0)


def test_waiting_for_a_rank_is_reported_while_it_lasts() -> None:
    """On the planning rank; the rebalance goes on when the rank comes."""
    told, others = run_ranks(2, rebalance_and_report, late, timeout=300)
    assert ("stalled", False) in told
    assert [one for one in told if one[0] != "stalled"] == [("skipped", False), ("accepted", True)]
    assert others == []


def rebalance_to_deaf_ears() -> Result:
    def fail(_: object) -> None:
        raise OSError("no space left on device")

    log = Log()
    logging.getLogger("eplb_plugin").addHandler(log)
    rebalancer, entry = Rebalancer(PluginConfig(), fail), new_entry()
    rebalancer.add("key", entry, planning_rank=dist.get_rank() == 0)
    record(entry)
    rebalancer.observe("key", dist.group.WORLD)
    return rebalancer.decide("key", OLD.copy(), dist.group.WORLD).placement.phy2log, log.lines


def test_a_report_that_fails_parts_no_ranks() -> None:
    """All ranks still move to the new plan; one line says what failed."""
    (first, lines), (second, _) = run_ranks(2, rebalance_to_deaf_ears, timeout=300)
    np.testing.assert_array_equal(first, second)
    assert (first != OLD).any()
    warnings = [text for level, text in lines if level == "WARNING"]
    assert warnings == ["the outcome of a rebalance was not reported: OSError: no space left on device"]
