"""The next window from a history of windows: a weighted mean, and how far such a forecast usually is from the truth.

What came before may be noise around one traffic (then all windows count the same), a slow drift (then new ones count
more), or other traffic altogether (then it must not count). Instead of choosing a memory length beforehand, the weights
are those of the combination with the least expected squared error (Bates and Granger 1969): a window's own noise and
its distance from the newest window, beyond noise, are both read off the history.

Loads are compared as square roots of shares, whose noise is the same for rare and for frequent experts (Hellinger
distance). Traffic changes for all layers at once, so the weights are estimated on all of them together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import mismatch
from ..statistics import RoutingStatistics, joined_steps

BACKTESTS = 4  # newest windows on which the error of a forecast is measured
Floats = NDArray[np.float64]


def forecast(history: Sequence[RoutingStatistics], *, pairs: bool = True) -> RoutingStatistics:
    """The window that will follow `history` (oldest first, at least one window of one model).

    Load, co-activation and num_tokens are weighted means over the windows; the sample holds rows of every window in
    proportion to its weight, and its parts are the windows that count; single steps are of all windows. What a window
    lacks (tokens of a layer, co-activation, a sample) is taken from the others.
    pairs: False leaves the co-activation, most of the work, out where there is a sample: beside one, only policy
    `affinity` on several nodes reads it.
    """
    _refuse_mixed(history)
    share, total = _shares(_loads(history))
    weights = _weights(share, total)
    by_layer = _weights_by_layer(weights, total > 0.0)
    tokens = np.stack([window.num_tokens for window in history])
    size = (by_layer * total).sum(axis=0)
    parts = (by_layer * size)[:, :, None] * share
    expected = parts.sum(axis=0)
    counts = parts.any(axis=(1, 2))
    sample = _combined_sample(history, weights)
    wants_pairs = pairs or sample is None
    return RoutingStatistics(
        expected,
        _combined_pairs(history, weights, total, expected, size) if wants_pairs else None,
        sample,
        np.rint((by_layer * tokens).sum(axis=0)).astype(np.int64),
        history[-1].layer_ids,
        parts if counts.all() else parts[counts],
        steps=joined_steps(history),
    )


def forecast_error(history: Sequence[RoutingStatistics]) -> Floats:
    """[L] how sure: load-weighted RMS relative error of an expert's forecast load, e.g. 0.15; NaN where unknown.

    Measured on the history: each of the newest windows is forecast from those before it; the median of the errors.
    """
    _refuse_mixed(history)
    share, total = _shares(_loads(history))
    errors = np.full((BACKTESTS, total.shape[1]), np.nan)
    for row, now in enumerate(range(max(len(total) - BACKTESTS, 1), len(total))):
        by_layer = _weights_by_layer(_weights(share[:now], total[:now]), total[:now] > 0.0)
        expected = np.einsum("wl,wle->le", by_layer, share[:now])
        known = (expected.sum(axis=1) > 0.0) & (total[now] > 0.0)
        distance = np.sqrt(((np.sqrt(expected) - np.sqrt(share[now])) ** 2).sum(axis=1))
        errors[row] = np.where(known, 2.0 * distance, np.nan)  # d√p = dp / (2 √p)
    return np.array(
        [np.median(column[~np.isnan(column)]) if (column == column).any() else np.nan for column in errors.T]
    )


def window_weights(load: Floats) -> Floats:
    """load: [W, L, E], oldest first -> [W] weights >= 0 that sum to 1; 0 for a window without any token.

    The expected squared distance of Σ w_t x_t from the newest window's true load is wᵀ C w with
    C = (bias_t · bias_u) + diag(noise_t); bias = distance from the newest window beyond noise, 0 for itself.
    """
    return _weights(*_shares(load))


def _weights(share: Floats, total: Floats) -> Floats:
    """`window_weights`. share: [W, L, E], total: [W, L], as `_shares` has them."""
    weights = np.zeros(len(total))
    filled = np.flatnonzero(total.any(axis=1))
    if len(filled) < 2:
        weights[filled if len(filled) else [-1]] = 1.0
        return weights
    if len(filled) < len(total):
        share, total = share[filled], total[filled]
    root = _fill_gaps(np.sqrt(share), total > 0.0)
    noise = _noise(root, share, total)
    offset = root[:-1] - root[-1]
    bias = np.einsum("tle,ule->tu", offset, offset) - noise[-1] - np.diag(noise[:-1])
    values, vectors = np.linalg.eigh(bias)  # estimated, so perhaps not a Gram matrix: the nearest one
    error = np.diag(noise)
    error[:-1, :-1] += (vectors * np.maximum(values, 0.0)) @ vectors.T
    weights[filled] = _least_error(error)
    return weights


def _noise(root: Floats, share: Floats, total: Floats) -> Floats:
    """[W] squared distance of a window's roots from the true ones: what counting explains, plus one burstiness for all.

    Counts follow Poisson's law, so that a root's variance is 1 / (4 tokens). The burstiness is what neighbouring
    windows differ by beyond that, by the median (one change of traffic does not move it); half of it is each window's.
    """
    counted = np.where(total > 0.0, np.minimum(share, 0.25 / np.maximum(total, 1e-12)[:, :, None]).sum(axis=2), 0.0)
    sampling = counted.sum(axis=1)
    steps, explained = ((root[1:] - root[:-1]) ** 2).sum(axis=(1, 2)), sampling[1:] + sampling[:-1]
    sampling *= min(1.0, _lower_median(steps / np.maximum(explained, 1e-300)))  # counts may have been scaled
    burstiness = max(_lower_median(steps - sampling[1:] - sampling[:-1]) / 2.0, 0.0)
    return np.maximum(sampling + burstiness, 1e-12)  # equal windows: no noise, any weights do


def _least_error(error: Floats) -> Floats:
    """error: [W, W] positive definite -> w >= 0 with sum 1 and least wᵀ error w (windows that would subtract go)."""
    used = np.ones(len(error), bool)
    while True:
        weights = np.zeros(len(error))
        weights[used] = np.linalg.solve(error[np.ix_(used, used)], np.ones(used.sum()))
        weights /= weights.sum()
        if (weights >= 0.0).all():
            return weights
        used[np.argmin(weights)] = False


def _lower_median(values: Floats) -> float:
    return float(np.sort(values)[(len(values) - 1) // 2])


def _loads(history: Sequence[RoutingStatistics]) -> Floats:
    """[W, L, E]."""
    return np.stack([window.load for window in history], dtype=np.float64, casting="unsafe")


def _shares(load: Floats) -> tuple[Floats, Floats]:
    """load: [W, L, E] -> shares of the layer's selections (0 where there are none), and their number [W, L]."""
    total = load.sum(axis=2)
    return load / np.where(total > 0.0, total, 1.0)[:, :, None], total


def _fill_gaps(root: Floats, known: NDArray[np.bool_]) -> Floats:
    """A layer without tokens in a window says nothing about that window: give it the layer's mean over the others."""
    mean = root.sum(axis=0) / np.maximum(known.sum(axis=0), 1)[:, None]
    return np.where(known[:, :, None], root, mean)


def _weights_by_layer(weights: Floats, known: NDArray[np.bool_]) -> Floats:
    """[W], [W, L] -> [W, L] summing to 1 over the windows that know the layer; 0 if none does."""
    masked = weights[:, None] * known
    masked = np.where(masked.sum(axis=0) > 0.0, masked, known)
    return masked / np.maximum(masked.sum(axis=0), 1e-300)


def _combined_pairs(
    history: Sequence[RoutingStatistics], weights: Floats, total: Floats, load: Floats, size: Floats
) -> Floats | None:
    """[L, E, E] weighted mean over the windows that counted pairs, in the units of `load`, which is its diagonal."""
    counted = np.array([window.coactivation is not None for window in history])
    if not counted.any():
        return None
    scale = _weights_by_layer(weights, (total > 0.0) & counted[:, None]) * size / np.where(total > 0.0, total, 1.0)
    pairs = np.zeros((*load.shape, load.shape[1]))
    for window, factor in zip(history, scale, strict=True):
        if window.coactivation is not None and factor.any():
            pairs += window.coactivation * factor[:, None, None]
    experts = np.arange(load.shape[1])
    pairs[:, experts, experts] = load
    return pairs


def _combined_sample(history: Sequence[RoutingStatistics], weights: Floats) -> NDArray[np.int16] | None:
    """[L, S, K] rows spread evenly over every window's sample; S as in the largest one."""
    samples = [window.sample for window in history]
    filled = [np.empty(0, np.int64) if sample is None else _filled_rows(sample) for sample in samples]
    rows = np.array([len(known) for known in filled])
    layers, width = history[0].num_layers, max((s.shape[2] for s in samples if s is not None), default=0)
    if not width:
        return None
    share = _weights_by_layer(weights, (rows > 0)[:, None])[:, 0]
    wanted = np.minimum(np.rint(share * rows.max()).astype(np.int64), rows)
    made, end = np.empty((layers, int(wanted.sum()), width), np.int16), 0
    for sample, known, count in zip(samples, filled, wanted.tolist(), strict=True):
        if sample is None or not count:
            continue
        picked = known[np.arange(count) * len(known) // count]
        # of an array in order `take` copies whole rows; of another it is slower than putting it in order first
        made[:, end : end + count, : sample.shape[2]] = np.take(np.ascontiguousarray(sample), picked, axis=1)
        made[:, end : end + count, sample.shape[2] :] = -1
        end += count
    return made


def _filled_rows(sample: NDArray[np.int16]) -> NDArray[np.int64]:
    """Indices of rows in which any layer names an expert; one look tells for nearly all of them."""
    filled = sample[0, :, 0] >= 0 if sample.shape[2] else np.zeros(sample.shape[1], np.bool_)
    rest = np.flatnonzero(~filled)
    filled[rest] = (sample[:, rest] >= 0).any(axis=(0, 2))
    return np.flatnonzero(filled)


def _refuse_mixed(history: Sequence[RoutingStatistics]) -> None:
    if not len(history):
        raise mismatch("history", found="no window", expected="at least one", fix="record a window first")
    first = history[0]
    for window in history[1:]:
        if window.load.shape != first.load.shape or not np.array_equal(window.layer_ids, first.layer_ids):
            raise mismatch(
                "history", found=f"layers × experts {window.load.shape}",
                expected=f"{first.load.shape} with equal layer_ids", fix="pass windows of one model",
            )  # fmt: skip
