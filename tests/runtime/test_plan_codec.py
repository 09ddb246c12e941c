"""The planning rank's message: what was sent is what is received, bit for bit, or it is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplb_plugin.errors import PluginError
from eplb_plugin.placement import Placement, linear_placement
from eplb_plugin.plan_types import Plan
from eplb_plugin.planning.planner import plan_of
from eplb_plugin.runtime.plan_codec import accept, encode, encode_error
from eplb_plugin.topology import Topology
from strategies import QUICK, weighted_plans

TOPOLOGY = Topology(2, 1, 3)
PLACED = plan_of(linear_placement(2, 4, 6), TOPOLOGY, "hash")
OTHER = plan_of(Placement(PLACED.placement.phy2log[:, ::-1].copy()), TOPOLOGY, "hash")


def outcome(message: bytes) -> Plan | Exception:
    """What a rank does with a message: `decide` keeps the old plan for an exception of any kind."""
    try:
        return accept(message, PLACED)
    except Exception as error:
        return error


@QUICK
@given(weighted_plans())
def test_round_trip(plan: Plan) -> None:
    """The plan that was sent is the one received, its weights bit for bit: tables are made from them on every rank."""
    in_force = plan_of(plan.placement, plan.topology, "weighted")
    received = accept(encode(plan), in_force)
    assert received.digest == plan.digest
    assert accept(encode(in_force), plan).digest == in_force.digest


def test_cover_weights_travel() -> None:
    """Rule `cover` has integer weights."""
    plan = replace(OTHER, dispatch="cover", cover_weights=np.arange(1, 13, dtype=np.int32).reshape(2, 6))
    assert accept(encode(plan), replace(PLACED, dispatch="cover")).digest == plan.digest


def test_layer_numbers_are_the_receivers() -> None:
    """They do not travel: every rank knows its layers."""
    placed = replace(PLACED, placement=Placement(PLACED.placement.phy2log, np.array([3, 7])))
    assert accept(encode(OTHER), placed).placement.layer_ids.tolist() == [3, 7]


def test_error_message() -> None:
    """An error is passed on as it is."""
    with pytest.raises(PluginError, match=r"^planning failed: because$"):
        accept(encode_error("planning failed: because"), PLACED)


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (replace(OTHER, dispatch="nearest"), "dispatch nearest, expected hash"),
        (plan_of(linear_placement(2, 4, 8), Topology(2, 1, 4), "hash"), r"phy2log \[2, 8\], expected \[2, 6\]"),
        (plan_of(linear_placement(2, 3, 6), TOPOLOGY, "hash"), "3 experts, expected 4"),
        (replace(OTHER, source_weights=np.ones((3, 2, 6))), r"source_weights \[3, 2, 6\], expected \[2, 2, 6\]"),
    ],
)
def test_plan_that_cannot_follow_is_refused(sent: Plan, words: str) -> None:
    """Another dispatch, other slots, experts or nodes than those in force."""
    with pytest.raises(PluginError, match=words):
        accept(encode(sent), PLACED)


@given(place=st.integers(0, len(encode(OTHER)) - 1), bit=st.integers(0, 7))
def test_one_wrong_bit_is_noticed(place: int, bit: int) -> None:
    """A message with one bit wrong is refused, or (white space of the header) still says what was sent."""
    message = bytearray(encode(OTHER))
    message[place] ^= 1 << bit
    result = outcome(bytes(message))
    assert isinstance(result, Exception) or result.digest == OTHER.digest


@given(st.integers(0, len(encode(OTHER)) - 1))
def test_truncated_message_is_noticed(length: int) -> None:
    """A message that ends early is refused wherever it ends."""
    assert isinstance(outcome(encode(OTHER)[:length]), Exception)


@given(st.binary(max_size=200))
def test_any_bytes_are_refused(message: bytes) -> None:
    """Bytes that no rank sent are refused."""
    assert isinstance(outcome(message), Exception)


def test_digest_is_of_the_body() -> None:
    """A body that does not belong to its header is refused with both digests."""
    head, _, _ = encode(OTHER).partition(b"\n")
    _, _, body = encode(PLACED).partition(b"\n")
    with pytest.raises(PluginError, match=r"plan digest: found [0-9a-f]{16}, expected [0-9a-f]{16}"):
        accept(head + b"\n" + body, PLACED)
    assert json.loads(head)["shapes"]["phy2log"] == [2, 6]
