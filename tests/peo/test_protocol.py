"""The checker against a machine that knows no rules: what passes is right in every order, what is refused breaks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from double_buffer import Broken, Machine, explore, stroll
from eplb_plugin import PluginError
from eplb_plugin.peo import protocol
from eplb_plugin.peo.ops import Api, Kind, Method, Schedule
from eplb_plugin.peo.schedule import make_schedule
from op_list_mutants import single_mutants
from strategies import QUICK

SPLIT: list[tuple[Method, Api]] = [
    ("overlap-1", "patched"), ("overlap-2", "patched"), ("overlap-3", "patched"), ("overlap-4", "patched"),
    ("overlap-2", "stock"),
]  # fmt: skip
# refused though the machine survives it: work done twice to the same end, and a launch that the API does not offer
STRICTER_THAN_NEEDED = ("every expert once", "one op for each event", "where its hook can run")


def make(method: Method, api: Api = "patched", num_rounds: int = 2, per_round: int = 1) -> Schedule:
    experts = num_rounds * per_round
    return make_schedule(method, num_rounds=num_rounds, num_local_experts=experts, num_device_sms=78, api=api)


def complaint(schedule: Schedule) -> str | None:
    try:
        protocol.check(schedule)
    except PluginError as error:
        return str(error)
    return None


def breaks(schedule: Schedule, strolls: int = 40) -> bool:
    try:
        machine = Machine(schedule)
        for seed in range(strolls):
            stroll(machine, seed)
    except Broken:
        return True
    return False


@pytest.mark.parametrize("per_round", [1, 2])
@pytest.mark.parametrize("num_rounds", [1, 2, 3, 4])
@pytest.mark.parametrize(("method", "api"), SPLIT)
def test_every_list_that_is_made_is_legal_and_right(method: Method, api: Api, num_rounds: int, per_round: int):
    schedule = make(method, api, num_rounds, per_round)
    protocol.check(schedule, num_ranks=2)
    assert not breaks(schedule, strolls=10)


@pytest.mark.parametrize(("method", "api"), SPLIT)
def test_right_in_every_possible_order(method: Method, api: Api):
    assert explore(Machine(make(method, api))) > 1000


def test_unsplit_is_legal_and_right():
    for api in ("patched", "stock"):
        schedule = make("non-overlap", api, 1, 2)
        protocol.check(schedule)
        assert explore(Machine(schedule, layers=3)) > 100


@pytest.mark.parametrize(("method", "api"), SPLIT)
def test_every_small_change_is_refused_or_harmless(method: Method, api: Api):
    refused = 0
    for name, mutant in single_mutants(make(method, api)):
        reason = complaint(mutant)
        if reason is None:
            explore(Machine(mutant))  # raises Broken: the checker let a wrong list pass
        elif not any(words in reason for words in STRICTER_THAN_NEEDED):
            assert breaks(mutant), f"{name} is refused for nothing: {reason}"
            refused += 1
    assert refused > 80


@QUICK
@given(st.sampled_from(SPLIT), st.sampled_from([2, 3, 4]), st.lists(st.integers(0, 10**6), min_size=2, max_size=3))
def test_changes_upon_changes_never_slip_through(case: tuple[Method, Api], num_rounds: int, picks: list[int]):
    schedule = make(*case, num_rounds=num_rounds)
    for pick in picks:
        mutants = list(single_mutants(schedule))
        schedule = mutants[pick % len(mutants)][1]
    if complaint(schedule) is None:
        assert not breaks(schedule)


@pytest.mark.parametrize("num_rounds", [1, 2, 3, 4])
@pytest.mark.parametrize(("method", "api"), SPLIT)
def test_a_graph_holds_an_even_number_of_calls(method: Method, api: Api, num_rounds: int):
    """Replays begin with the half that was captured; with an odd number of calls the machine breaks at the second."""
    schedule = make(method, api, num_rounds)
    try:
        for seed in range(5):
            stroll(Machine(schedule, layers=2, replayed=True), seed)
        protocol.check(schedule, graph_layers=1)
        assert schedule.num_calls % 2 == 0
    except Broken:
        with pytest.raises(PluginError, match=r"calls × 1 MoE layers in a CUDA graph.*an even number"):
            protocol.check(schedule, graph_layers=1)
    protocol.check(schedule, graph_layers=2)


def change(schedule: Schedule, place: int, **fields: object) -> Schedule:
    ops = (*schedule.ops[:place], replace(schedule.ops[place], **fields), *schedule.ops[place + 1 :])  # type: ignore[arg-type]
    return replace(schedule, ops=ops)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: replace(make("overlap-1"), api="stock"), "op 5 (dispatch recv 1 on main): found 16 SMs, expected 78"),
        (lambda: change(make("overlap-1"), 3, num_sms=79), "op 3 (gemm up 0 on gemm): found 79 SMs, expected 1..78"),
        (lambda: change(make("overlap-1"), 3, experts=(0, 2)), "found experts (0, 2), expected slice 0 of 2"),
        (lambda: change(make("overlap-1"), 3, waits=("later",)), "waits for 'later'"),
        (lambda: change(make("overlap-1"), 3, waits=()), "op 3 (gemm up 0 on gemm): found may start before"),
        (lambda: replace(make("overlap-1"), ops=()), "a list without dispatch send"),
        (lambda: change(make("overlap-1"), 0, kind="gather"), "found gather on main"),
        (lambda: change(make("overlap-1"), 0, stream="side"), "found dispatch send on side"),
        (lambda: change(make("overlap-3"), 8, waits=("computed 0",)), "op 8 (combine send 0 on main): found may start"),
    ],
)  # fmt: skip
def test_names_the_op_in_one_line(wrong: Callable[[], Schedule], words: str):
    with pytest.raises(PluginError) as error:
        protocol.check(wrong())
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def unforked() -> Schedule:
    """A layer that begins on the comm stream, which nothing holds back until the layer before is over."""
    schedule = change(make("non-overlap", num_rounds=1), 0, stream="comm")
    return change(change(schedule, 1, stream="comm", records="received"), 2, waits=("received",))


def unjoined() -> Schedule:
    """A layer that ends on the comm stream, which the next one does not wait for."""
    schedule = change(make("non-overlap", num_rounds=1), 4, records="sent back")
    return change(schedule, 5, stream="comm", waits=("sent back",))


@pytest.mark.parametrize(("wrong", "words"), [(unforked, "forked from main"), (unjoined, "may end after combine send")])
def test_a_layer_begins_and_ends_on_main(wrong: Callable[[], Schedule], words: str):
    assert breaks(wrong())
    with pytest.raises(PluginError, match=words):
        protocol.check(wrong())


def test_split_alike_where_one_takes_what_the_other_gives():
    split, whole = make("overlap-2"), make("overlap-4")

    def mixed(kind: Kind) -> Schedule:
        """`split`, all on main, with this kind of op in one piece."""
        ops = [replace(op, stream="main", waits=()) for op in split]
        first = next(place for place, op in enumerate(ops) if op.kind == kind)
        one = replace(ops[first], num_rounds=1, experts=(0, 2))
        return replace(split, ops=(*ops[:first], one, *(op for op in ops[first:] if op.kind != kind)))

    with pytest.raises(PluginError, match=r"gemm down on main\): found 1 rounds, expected 2, as of gemm up"):
        protocol.check(mixed("gemm down"))
    with pytest.raises(PluginError, match=r"dispatch recv on main\): found 1 rounds, expected 2, as of dispatch send"):
        protocol.check(mixed("dispatch recv"))
    twice = [replace(whole.ops[-1], round=r, num_rounds=2, experts=(r, r + 1)) for r in (0, 1)]
    with pytest.raises(PluginError, match="found 2 rounds, expected one, of all experts"):
        protocol.check(replace(whole, ops=(*whole.ops[:-1], *twice)))
    assert breaks(replace(whole, ops=(*whole.ops[:-1], *twice)))


def test_the_order_that_hangs_a_stock_buffer():
    """All SENDs first, as PR 492 may, on an unpatched buffer: legal there, a hang here."""
    first, stock = make("overlap-1"), make("overlap-2", "stock")
    sends, rest = stock.of_kind("dispatch send"), [op for op in stock if op.kind != "dispatch send"]
    hanging = replace(stock, ops=(*sends, *rest))
    protocol.check(first)
    assert breaks(hanging)
    with pytest.raises(PluginError, match=r"op 1 \(dispatch send 1 on main\).*one call in flight"):
        protocol.check(hanging)


def test_shares_too_small_for_the_kernels():
    """256 experts in 4 rounds: 64 for one kernel, at most 14 of them on an SM (DeepEP asserts fewer than 15)."""
    made = make_schedule(
        "overlap-1", num_rounds=4, num_local_experts=32, num_device_sms=78, deepep_send_num_sms=4, deepep_recv_num_sms=4
    )
    protocol.check(made)
    with pytest.raises(PluginError, match="found 4 SMs, expected >= 5, for 64 experts over 8 ranks"):
        protocol.check(made, num_ranks=8)


def test_ranks_must_agree():
    one, other = make("overlap-1"), make("overlap-2")
    protocol.check_agreement([one, one, one])
    with pytest.raises(PluginError, match="PEO op 1: found dispatch recv 0 on main on rank 2, expected dispatch"):
        protocol.check_agreement([one, one, other])
    with pytest.raises(PluginError, match=r"op 10: found nothing on rank 1"):
        protocol.check_agreement([one, replace(one, ops=one.ops[:-1])])
    with pytest.raises(PluginError, match="with other SMs or events"):
        protocol.check_agreement([one, change(one, 3, num_sms=7)])
