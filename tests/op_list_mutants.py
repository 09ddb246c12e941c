"""Small changes to an op list, of every kind and at every place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import get_args

from eplb_plugin.peo.ops import Op, Schedule, Stream


def single_mutants(schedule: Schedule) -> Iterator[tuple[str, Schedule]]:
    """Swap two ops, drop one, put it in twice, change its stream, its round, forget a wait or a record."""
    ops = schedule.ops
    for place, op in enumerate(ops):
        for other in range(place + 1, len(ops)):
            swapped = list(ops)
            swapped[place], swapped[other] = ops[other], op
            yield f"swap {place} and {other}", replace(schedule, ops=tuple(swapped))
        yield f"drop {place}", replace(schedule, ops=ops[:place] + ops[place + 1 :])
        for other in range(len(ops) + 1):
            yield f"{place} again at {other}", replace(schedule, ops=(*ops[:other], op, *ops[other:]))
        for name, changed in changes(op):
            yield f"{place}: {name}", replace(schedule, ops=(*ops[:place], changed, *ops[place + 1 :]))


def changes(op: Op) -> Iterator[tuple[str, Op]]:
    for stream in get_args(Stream):
        if stream != op.stream:
            yield f"on {stream}", replace(op, stream=stream)
    for event in op.waits:
        yield f"not after {event}", replace(op, waits=tuple(e for e in op.waits if e != event))
    if op.records:
        yield "records nothing", replace(op, records=None)
    if op.num_rounds > 1:
        round_id = (op.round + 1) % op.num_rounds
        size = op.experts[1] - op.experts[0]
        yield f"of round {round_id}", replace(op, round=round_id, experts=(round_id * size, (round_id + 1) * size))
