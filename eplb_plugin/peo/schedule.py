"""Make the op list of a method: which op of which round runs beside which."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from ..errors import mismatch
from .ops import Api, Kind, Method, Op, Schedule, Stream

DEFAULT_COMM_SMS = 16  # for a kernel that runs beside a GEMM, where nothing is said: copying saturates early
FEW_ROUNDS = 4  # enough to hide most; more rounds pay their latency again


def default_num_rounds(num_local_experts: int) -> int:
    """The divisor of the local experts that is nearest to 4."""
    divisors = [count for count in range(1, num_local_experts + 1) if num_local_experts % count == 0]
    return min(divisors, key=lambda count: (abs(count - FEW_ROUNDS), count))


def make_schedule(
    method: Method,
    *,
    num_rounds: int,
    num_local_experts: int,
    num_device_sms: int,
    deepep_send_num_sms: int | None = None,
    deepep_recv_num_sms: int | None = None,
    up_deepgemm_num_sms: int | None = None,
    down_deepgemm_num_sms: int | None = None,
    api: Api = "patched",
) -> Schedule:
    """The op list of one MoE layer, the same on every rank.

    method:
      non-overlap  dispatch, GEMM, combine one after the other, unsplit (num_rounds must be 1)
      overlap-1    all SENDs first, then RECV r; the GEMM of round r beside the RECVs of later rounds
      overlap-2    SEND r, RECV r in turn; the GEMM of round r beside both of later rounds
      overlap-3    as 2, with the RECVs on the comm stream, so that SEND r + 1 runs beside RECV r
      overlap-4    one unsplit dispatch; only the combine is split
    In all that overlap, combine SEND r runs beside the GEMMs of later rounds, and one RECV ends the layer.
    num_local_experts: physical experts of a rank, a multiple of num_rounds.
    num_device_sms: SMs of the GPU; an op with nothing beside it takes them all.
    deepep_*_num_sms: SMs of a SEND, RECV that runs beside something else; None: 16, or a quarter of a small device.
    *_deepgemm_num_sms: SMs of the GEMMs; None: what the kernels of DeepEP beside them leave.
    api: `stock` splits the dispatch alone, in the only order that an unpatched buffer allows (overlap-2), on all SMs.

    Raises PluginError if the method is unknown or not possible with the api, the experts do not divide into the
    rounds, or a share does not fit the device.
    """
    _check(method, api, num_rounds, num_local_experts)
    if api == "stock" and not deepep_send_num_sms is deepep_recv_num_sms is None:
        expected, fix = "none: a stock buffer takes all SMs", "leave them out, or use the patched API"
        raise mismatch("deepep_*_num_sms", found="a share", expected=expected, fix=fix)
    given = {
        "deepep_send_num_sms": deepep_send_num_sms, "deepep_recv_num_sms": deepep_recv_num_sms,
        "up_deepgemm_num_sms": up_deepgemm_num_sms, "down_deepgemm_num_sms": down_deepgemm_num_sms,
    }  # fmt: skip
    for name, share in given.items():
        if share is not None and not 1 <= share <= num_device_sms:
            expected = f"1..{num_device_sms}, the SMs of the device"
            raise mismatch(f"peo.{name}", found=share, expected=expected, fix="pass a share of them, or leave it out")
    default = min(DEFAULT_COMM_SMS, max(1, num_device_sms // 4))
    send, recv = deepep_send_num_sms or default, deepep_recv_num_sms or default
    if num_rounds == 1 or api == "stock":
        beside = 0  # nothing runs beside a GEMM, or only kernels that cannot be told to leave it room
    else:
        beside = {"overlap-3": send + recv, "overlap-4": send}.get(method, max(send, recv))
    left = num_device_sms - beside
    if left < 1:
        raise mismatch(
            "peo.deepep_*_num_sms", found=f"{beside} of {num_device_sms} SMs for SEND and RECV",
            expected="some left for the GEMM beside them", fix="lower deepep_send_num_sms and deepep_recv_num_sms",
        )  # fmt: skip
    shares = _Shares(num_device_sms, send, recv, up_deepgemm_num_sms or left, down_deepgemm_num_sms or left)
    layer = _Layer(num_rounds, num_local_experts, shares)
    if method == "non-overlap":
        layer.unsplit()
    elif api == "stock":
        layer.stock()
    else:
        layer.patched(method)
    return Schedule(method, api, num_rounds, num_local_experts, num_device_sms, tuple(layer.ops))


def _check(method: Method, api: Api, num_rounds: int, num_local_experts: int) -> None:
    for name, value, known in (("method", method, get_args(Method)), ("api", api, get_args(Api))):
        if value not in known:
            raise mismatch(f"peo.{name}", found=repr(value), expected=", ".join(known), fix="name one of them")
    if api == "stock" and method not in ("non-overlap", "overlap-2"):
        expected = "overlap-2: an unpatched buffer holds one SEND that is not received yet"
        raise mismatch("peo.method", found=f"{method} with the stock API", expected=expected, fix="method: overlap-2")
    if num_rounds < 1 or num_local_experts < 1 or num_local_experts % num_rounds:
        rounds = [count for count in range(1, num_local_experts + 1) if num_local_experts % count == 0]
        raise mismatch(
            "peo.num_rounds", found=f"{num_rounds} rounds of {num_local_experts} local experts",
            expected="equal slices", fix=f"set it to one of {', '.join(map(str, rounds))}",
        )  # fmt: skip
    if method == "non-overlap" and num_rounds != 1:
        fix = "choose another peo.method, or peo.num_rounds: 1"
        raise mismatch("peo.num_rounds", found=num_rounds, expected="1 with non-overlap", fix=fix)


@dataclass(frozen=True)
class _Shares:
    """SMs of the whole device, of a SEND and a RECV with something beside it, and of the two GEMMs."""

    device: int
    send: int
    recv: int
    up: int
    down: int


class _Layer:
    """Collects the ops of one layer. Events: `received r`, `computed r`, and `sent r` where another stream receives."""

    def __init__(self, num_rounds: int, num_local_experts: int, shares: _Shares) -> None:
        self.ops: list[Op] = []
        self.num_rounds, self.num_local_experts, self.shares = num_rounds, num_local_experts, shares

    def add(
        self, kind: Kind, round_id: int, num_sms: int, *, stream: Stream = "main", of: int | None = None,
        waits: tuple[str, ...] = (), records: str | None = None,
    ) -> None:  # fmt: skip
        """of: rounds of this phase, where it is not split like the rest."""
        rounds = self.num_rounds if of is None else of
        size = self.num_local_experts // rounds
        experts = (round_id * size, (round_id + 1) * size)
        self.ops.append(Op(kind, stream, num_sms, round_id, rounds, experts, waits, records))

    def unsplit(self) -> None:
        self.add("dispatch send", 0, self.shares.device)
        self.add("dispatch recv", 0, self.shares.device)
        self.add("gemm up", 0, self.shares.up)
        self.add("gemm down", 0, self.shares.down)
        self.add("combine send", 0, self.shares.device)
        self.add("combine recv", 0, self.shares.device)

    def gemms(self, round_id: int, received: str) -> None:
        self.add("gemm up", round_id, self.shares.up, stream="gemm", waits=(received,))
        self.add("gemm down", round_id, self.shares.down, stream="gemm", records=f"computed {round_id}")

    def stock(self) -> None:
        """Rounds on the dispatch side; one combine with the merged handle: its bits are those of the unsplit layer.

        A round masks the other rounds' top-k ids by -1. To renumber the experts would need less memory, but the place
        of the flags in the buffer depends on `num_experts`, which must be that of the combine.
        """
        for round_id in range(self.num_rounds):
            self.add("dispatch send", round_id, self.shares.device)
            self.add("dispatch recv", round_id, self.shares.device, records=f"received {round_id}")
            self.gemms(round_id, f"received {round_id}")
        last = self.num_rounds - 1
        self.add("combine send", 0, self.shares.device, of=1, waits=(f"computed {last}",))
        self.add("combine recv", 0, self.shares.device, of=1)

    def patched(self, method: Method) -> None:
        """SEND and RECV of round 0, and the last combine SEND, have no GEMM beside them and take the whole device."""
        device, send, recv = self.shares.device, self.shares.send, self.shares.recv
        rounds = range(self.num_rounds)
        if method == "overlap-1":
            for r in rounds:
                self.add("dispatch send", r, device)
            for r in rounds:
                self.add("dispatch recv", r, device if r == 0 else recv, records=f"received {r}")
                self.gemms(r, f"received {r}")
        elif method == "overlap-2":
            for r in rounds:
                self.add("dispatch send", r, device if r == 0 else send)
                self.add("dispatch recv", r, device if r == 0 else recv, records=f"received {r}")
                self.gemms(r, f"received {r}")
        elif method == "overlap-3":
            first = device if self.num_rounds == 1 else device - send
            for r in rounds:
                self.add("dispatch send", r, device if r == 0 else send, records=f"sent {r}")
                waits, share = (f"sent {r}",), first if r == 0 else recv
                self.add("dispatch recv", r, share, stream="comm", waits=waits, records=f"received {r}")
                self.gemms(r, f"received {r}")
        else:
            self.add("dispatch send", 0, device, of=1)
            self.add("dispatch recv", 0, device, of=1, records="received 0")
            for r in rounds:
                self.gemms(r, "received 0")
        last = self.num_rounds - 1
        for r in rounds:
            # a combine SEND clears the words that dispatch RECVs of this layer still read: all of them must be over
            all_received = (f"received {last}",) if method == "overlap-3" and r == 0 else ()
            self.add("combine send", r, device if r == last else send, waits=(*all_received, f"computed {r}"))
        self.add("combine recv", 0, device, of=1)
