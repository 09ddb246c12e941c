"""docs/peo.svg and the tables in docs/peo.md: op lists as the timeline model times them, and that beside others."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from eplb_plugin.observe.gantt import SimulatedLayer, gantt, simulated_layer
from eplb_plugin.peo.cost import Traffic, even_shares
from eplb_plugin.peo.ops import Api, Method
from eplb_plugin.peo.presets import HARDWARE, MODELS, PUBLISHED_TIMES
from eplb_plugin.peo.ranking import distances, unsplit_us
from eplb_plugin.peo.schedule import make_schedule
from eplb_plugin.peo.timeline import simulate

TARGET = Path(__file__).resolve().parents[3] / "docs" / "peo.svg"
PAGE, BEGIN, END = TARGET.with_suffix(".md"), "<!-- tables -->\n", "<!-- end of tables -->"
COMPARED = (("H20", 8), ("H20", 16), ("H800", 16), ("H800", 32))
HARDWARE_USED, MODEL_USED, RANKS, BATCH, ROUNDS, COMM_SMS = HARDWARE["H800"], MODELS["deepseek-v3"], 32, 64, 4, 24


def main() -> None:
    TARGET.write_text(picture())
    text = PAGE.read_text()
    before, after = text[: text.index(BEGIN)], text[text.index(END) :]
    PAGE.write_text(f"{before}{BEGIN}{tables()}{after}")
    print(f"wrote {TARGET} and the tables of {PAGE}")


def tables() -> str:
    """The model beside DeepEP's published times, and beside the claims of PR 492."""
    lines = [
        "| 128 tokens on H800 | dispatch, published | model | combine, published | model |",
        "|---|---|---|---|---|",
    ]
    for one in PUBLISHED_TIMES:
        experts = MODEL_USED.num_experts // one.num_ranks
        plain = make_schedule(
            "non-overlap", num_rounds=1, num_local_experts=experts, num_device_sms=HARDWARE_USED.num_sms
        )
        spans = simulate(plain, HARDWARE_USED, Traffic(MODEL_USED, even_shares(one.num_ranks, experts), 128)).of_rank(0)
        modelled = spans[1].end, spans[5].end - spans[3].end
        pairs = zip((one.dispatch_us, one.combine_us), modelled, strict=True)
        lines.append(
            f"| EP{one.num_ranks} | " + " | ".join(f"{us:.0f} µs | {ours:.0f} µs" for us, ours in pairs) + " |"
        )
    heads = " | ".join(f"model: {hardware} EP{ranks}" for hardware, ranks in COMPARED)
    lines += ["", f"| claim of PR 492 | {heads} |", "|---" * (1 + len(COMPARED)) + "|"]
    found = [distances(HARDWARE[hardware], ranks) for hardware, ranks in COMPARED]
    for same in zip(*found, strict=True):
        claim = same[0].claim
        cells = " | ".join(f"{one.modelled:+.0f} %" for one in same)
        lines.append(f"| {claim.family}, batch {claim.batch}: {claim.percent:+.0f} % ({same[0].model}) | {cells} |")
    return "\n".join(lines) + "\n"


def picture() -> str:
    pairs: list[tuple[Method, Api]] = [(method, "patched") for method in get_args(Method)]
    drawn = gantt([layer(method, api) for method, api in [*pairs, ("overlap-2", "stock")]])
    return drawn.replace("<text", '<rect width="100%" height="100%" fill="white"/><text', 1) + "\n"


def layer(method: Method, api: Api) -> SimulatedLayer:
    experts = MODEL_USED.num_experts // RANKS
    traffic = Traffic(MODEL_USED, even_shares(RANKS, experts), BATCH)
    shares = COMM_SMS if api == "patched" and method != "non-overlap" else None
    schedule = make_schedule(
        method, num_rounds=1 if method == "non-overlap" else ROUNDS, num_local_experts=experts,
        num_device_sms=HARDWARE_USED.num_sms, deepep_send_num_sms=shares, deepep_recv_num_sms=shares, api=api,
    )  # fmt: skip
    title = method if api == "patched" else f"{method}, stock API"
    return simulated_layer(
        simulate(schedule, HARDWARE_USED, traffic), title, unsplit_us(HARDWARE_USED, [traffic])[BATCH], 1.0
    )


if __name__ == "__main__":
    main()
