"""Which schedule the timeline model prefers, and how far the model is from what PEO's author claims."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from ..errors import mismatch
from .cost import Traffic, even_shares
from .ops import Overlap, Schedule
from .presets import CLAIMS, MODELS, Claim, Hardware
from .protocol import least_comm_sms
from .schedule import make_schedule
from .timeline import simulate

COMM_SMS = (4, 8, 16, 24, 32, 48)  # shares of a SEND and a RECV that are tried
MOST_ROUNDS = 10
MIN_GAIN = 0.02  # of a model as rough as this one, less is none
RESOLUTION = 0.01  # gains closer than this are equal: fewer rounds and fewer SMs for DeepEP first


@dataclass(frozen=True)
class Ranked:
    """One schedule over several batches. comm_sms: of a SEND and of a RECV beside other kernels.
    total_us, gain: by batch; gain = time without overlap / time with it - 1."""

    schedule: Schedule
    comm_sms: int
    total_us: Mapping[int, float]
    gain: Mapping[int, float]

    @property
    def mean_gain(self) -> float:
        """Geometric, over the batches: each counts alike."""
        return math.exp(sum(math.log1p(gain) for gain in self.gain.values()) / len(self.gain)) - 1.0

    @property
    def is_worth_it(self) -> bool:
        return self.mean_gain >= MIN_GAIN


def rank_schedules(hardware: Hardware, traffics: Sequence[Traffic], num_rounds: int | None = None) -> list[Ranked]:
    """All methods, rounds and SM shares, best first. traffics: one per batch, of the same model and ranks.

    num_rounds: only that many; None: every divisor of the local experts in 2..10.
    Raises PluginError if the local experts cannot be split, or no share of the device is enough for DeepEP's kernels.
    """
    experts, ranks = traffics[0].num_local_experts, traffics[0].num_ranks
    base = unsplit_us(hardware, traffics)
    made = [
        _timed(schedule, comm_sms, hardware, traffics, base)
        for rounds in ([num_rounds] if num_rounds else split_counts(experts))
        for comm_sms in COMM_SMS
        if least_comm_sms(experts // rounds * ranks) <= comm_sms and 2 * comm_sms < hardware.num_sms
        for schedule in _of_every_method(rounds, experts, comm_sms, hardware.num_sms)
    ]
    if not made:
        found = f"{experts} local experts on {ranks} ranks, {hardware.num_sms} SMs"
        raise mismatch("PEO", found=found, expected="experts and SMs that can be split", fix="use more rounds or ranks")
    return sorted(made, key=lambda one: (-round(one.mean_gain / RESOLUTION), one.schedule.num_rounds, one.comm_sms))


def unsplit_us(hardware: Hardware, traffics: Sequence[Traffic]) -> dict[int, float]:
    """µs of a layer without overlap, by batch."""
    experts = traffics[0].num_local_experts
    plain = make_schedule("non-overlap", num_rounds=1, num_local_experts=experts, num_device_sms=hardware.num_sms)
    return {traffic.batch: simulate(plain, hardware, traffic).total_us for traffic in traffics}


def stock_candidate(hardware: Hardware, traffics: Sequence[Traffic], num_rounds: int) -> Ranked:
    """What an unpatched DeepEP can do, beside the others."""
    schedule = make_schedule(
        "overlap-2", num_rounds=num_rounds, num_local_experts=traffics[0].num_local_experts,
        num_device_sms=hardware.num_sms, api="stock",
    )  # fmt: skip
    return _timed(schedule, hardware.num_sms, hardware, traffics, unsplit_us(hardware, traffics))


def split_counts(num_local_experts: int) -> list[int]:
    return [count for count in range(2, MOST_ROUNDS + 1) if num_local_experts % count == 0]


def _of_every_method(num_rounds: int, experts: int, comm_sms: int, num_device_sms: int) -> Iterable[Schedule]:
    for method in get_args(Overlap):
        yield make_schedule(
            method, num_rounds=num_rounds, num_local_experts=experts, num_device_sms=num_device_sms,
            deepep_send_num_sms=comm_sms, deepep_recv_num_sms=comm_sms,
        )  # fmt: skip


def _timed(
    schedule: Schedule, comm_sms: int, hardware: Hardware, traffics: Sequence[Traffic], base: Mapping[int, float]
) -> Ranked:
    total = {traffic.batch: simulate(schedule, hardware, traffic).total_us for traffic in traffics}
    return Ranked(schedule, comm_sms, total, {batch: base[batch] / us - 1.0 for batch, us in total.items()})


@dataclass(frozen=True)
class Distance:
    """modelled: the best gain that the model finds on this hardware and EP size, in percent, beside the claimed one."""

    claim: Claim
    model: str
    modelled: float


def distances(hardware: Hardware, num_ranks: int) -> list[Distance]:
    """The model beside every published figure, with even load; models that do not divide over the ranks are left out.

    Nobody knows on which GPU and over how many ranks the claims were measured: they calibrate nothing.
    """
    found = []
    for claim in CLAIMS:
        for name in claim.models:
            experts, odd = divmod(MODELS[name].num_experts, num_ranks)
            if not odd and split_counts(experts):
                traffic = Traffic(MODELS[name], even_shares(num_ranks, experts), claim.batch)
                best = rank_schedules(hardware, [traffic])[0]
                found.append(Distance(claim, name, 100.0 * best.mean_gain))
    return found
