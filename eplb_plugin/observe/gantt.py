"""A simulated layer as data and as a picture: one row per stream, one bar per kernel, on one scale of time."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import PluginError, mismatch
from ..peo.ops import Kind, Stream
from ..peo.timeline import MODEL_NOT_MEASUREMENT, Timeline

COLOURS: dict[Kind, str] = {
    "dispatch send": "#1b6ca8", "dispatch recv": "#8ec1e6", "gemm up": "#b8860b", "gemm down": "#e0b94f",
    "combine send": "#b2182b", "combine recv": "#ef9a9a",
}  # fmt: skip
WIDTH, LEFT, ROW, HEAD, GAP = 900.0, 60.0, 22.0, 24.0, 14.0
LETTER = 7.0  # width of one, for labels that must fit their bars


class Bar(BaseModel):
    """One kernel. round: -1 where its phase is not split."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Kind
    stream: Stream
    round: int = Field(ge=-1)
    num_sms: int = Field(ge=1)
    start_us: float = Field(ge=0.0, allow_inf_nan=False)
    end_us: float = Field(ge=0.0, allow_inf_nan=False)


class SimulatedLayer(BaseModel):
    """What `peo simulate --json` prints: the slowest rank of a timeline. gain: over no overlap; 0.1 = 10 % faster."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    note: str = MODEL_NOT_MEASUREMENT
    title: str
    total_us: float = Field(gt=0.0, allow_inf_nan=False)
    non_overlap_us: float = Field(gt=0.0, allow_inf_nan=False)
    imbalance_factor: float = Field(ge=0.0, allow_inf_nan=False)
    rank: int
    bars: list[Bar] = Field(min_length=1)

    @property
    def gain(self) -> float:
        return self.non_overlap_us / self.total_us - 1.0


def simulated_layer(timeline: Timeline, title: str, non_overlap_us: float, imbalance_factor: float) -> SimulatedLayer:
    rank, ops = timeline.slowest_rank, timeline.schedule.ops
    bars = [
        Bar(
            kind=ops[span.op].kind, stream=ops[span.op].stream, num_sms=ops[span.op].num_sms,
            round=ops[span.op].round if ops[span.op].num_rounds > 1 else -1, start_us=span.start, end_us=span.end,
        )
        for span in sorted(timeline.of_rank(rank), key=lambda span: span.op)
    ]  # fmt: skip
    return SimulatedLayer(
        title=title, total_us=timeline.total_us, non_overlap_us=non_overlap_us, imbalance_factor=imbalance_factor,
        rank=rank, bars=bars,
    )  # fmt: skip


def read_simulated_layer(path: Path) -> SimulatedLayer:
    """A file of `peo simulate --json`. Raises PluginError with its name for anything else."""
    try:
        return SimulatedLayer.model_validate_json(path.read_bytes())
    except OSError as error:
        raise PluginError(f"{path}: cannot be read ({error.strerror or error}); fix: pass a readable file") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        found = f"{where}: {first['msg']}"[:200]
        fix = "write it with `eplb-plugin peo simulate --json`"
        raise mismatch(str(path), found=found, expected="what `peo simulate --json` prints", fix=fix) from None


def gantt(layers: Sequence[SimulatedLayer]) -> str:
    """An <svg> with one panel per layer, all on the same scale, and a legend."""
    most = max(layer.total_us for layer in layers)
    scale = (WIDTH - LEFT - 10.0) / most
    top, parts = 0.0, []
    for layer in layers:
        streams = [one for one in ("main", "comm", "gemm") if any(bar.stream == one for bar in layer.bars)]
        title = f"{layer.title}: {layer.total_us:.0f} µs ({layer.gain:+.0%})"
        parts.append(f'<text x="0" y="{top + 16:.1f}" font-size="14">{escape(title)}</text>')
        for row, stream in enumerate(streams):
            y = top + HEAD + row * ROW
            parts.append(f'<text x="0" y="{y + 14:.1f}" font-size="12" fill="#555">{stream}</text>')
            parts += [_bar(bar, LEFT, y, scale) for bar in layer.bars if bar.stream == stream]
        top += HEAD + len(streams) * ROW + GAP
    parts.append(_legend(top))
    parts.append(f'<text x="{LEFT:.0f}" y="{top + 36:.1f}" font-size="12" fill="#555">{MODEL_NOT_MEASUREMENT}</text>')
    box = f'viewBox="0 0 {WIDTH:.0f} {top + 44:.0f}" width="100%" font-family="sans-serif" role="img"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {box} aria-label="kernels over time">{"".join(parts)}</svg>'


def _bar(bar: Bar, left: float, y: float, scale: float) -> str:
    x, width = left + bar.start_us * scale, max((bar.end_us - bar.start_us) * scale, 1.0)
    number = "" if bar.round < 0 or width < LETTER * len(str(bar.round)) + 2 else str(bar.round)
    label = f"{bar.kind}{'' if bar.round < 0 else f' {bar.round}'}, {bar.num_sms} SMs"
    return (
        f"<g><title>{label}: {bar.start_us:.1f} – {bar.end_us:.1f} µs</title>"
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{ROW - 4:.0f}" fill="{COLOURS[bar.kind]}" '
        f'stroke="white" stroke-width="0.5"/>'
        f'<text x="{x + width / 2:.1f}" y="{y + 13:.1f}" font-size="11" text-anchor="middle">{number}</text></g>'
    )


def _legend(top: float) -> str:
    step = (WIDTH - LEFT) / len(COLOURS)
    return "".join(
        f'<rect x="{LEFT + number * step:.0f}" y="{top + 4:.0f}" width="12" height="12" fill="{colour}"/>'
        f'<text x="{LEFT + number * step + 17:.0f}" y="{top + 14:.0f}" font-size="12">{kind}</text>'
        for number, (kind, colour) in enumerate(COLOURS.items())
    )
