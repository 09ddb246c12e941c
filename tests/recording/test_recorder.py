"""The recorder against a slow reference: what it counts, what it leaves out, and what its buffers promise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch._subclasses.fake_tensor import FakeTensorMode

from eplb_plugin.recording.recorder import Recorder
from recorded import Reference, coactivation, route_layer, spoiled

CPU = torch.device("cpu")
Rows = NDArray[np.int64]  # [T, L, K]


@dataclass(frozen=True)
class Shape:
    layers: int
    experts: int
    top_k: int
    max_tokens: int
    sample_rows: int
    ubatches: int = 1
    sequence_parallel: int = 1  # ranks that share a batch
    chunk: int = 0  # this rank's part of it

    def recorder(self) -> Recorder:
        sizes = (self.layers, self.experts, self.top_k, self.max_tokens, self.sample_rows)
        return Recorder(*sizes, CPU, self.ubatches)

    def reference(self) -> Reference:
        return Reference(self.layers, self.experts, self.top_k, self.sample_rows)


def routed(random: np.random.Generator, shape: Shape, tokens: int) -> Rows:
    """[tokens, L, K], with rows that no router makes."""
    ids = np.argsort(random.random((tokens, shape.layers, shape.experts)), axis=2)[:, :, : shape.top_k]
    ids = spoiled(random, ids, shape.experts)
    ids[random.random(tokens) < 0.1] = -1
    return ids


def stage(recorder: Recorder, shape: Shape, ids: Rows, real: int, ubatch: int = 0) -> None:
    """One forward pass of one (micro-)batch on this rank. ids: [padded tokens of the batch, L, K]."""
    rows = len(ids) // shape.sequence_parallel
    own = ids[shape.chunk * rows : (shape.chunk + 1) * rows]
    for layer in range(shape.layers):
        route_layer(recorder, layer, own[:, layer].astype(np.int32), real, shape.chunk, ubatch)


def counted(shape: Shape, ids: Rows, real: int) -> list[Rows]:
    """The rows of a forward pass that this rank must look at: own and real."""
    rows = len(ids) // shape.sequence_parallel
    return [ids[token] for token in range(shape.chunk * rows, (shape.chunk + 1) * rows) if token < real]


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    experts = draw(st.integers(2, 6))
    parallel = draw(st.sampled_from([1, 1, 2, 3]))
    return Shape(
        layers=draw(st.integers(1, 3)),
        experts=experts,
        top_k=draw(st.integers(1, min(3, experts))),
        max_tokens=draw(st.integers(2, 6)) * parallel,
        sample_rows=draw(st.integers(1, 12)),
        ubatches=draw(st.integers(1, 2)),
        sequence_parallel=parallel,
        chunk=draw(st.integers(0, parallel - 1)),
    )


# what happens at an engine step; a dummy step announces no tokens, and its real-token tensors are those of before
steps = st.lists(
    st.tuples(st.sampled_from(["real", "real", "real", "dummy", "outside window", "reset"]), st.integers(0, 2**32 - 1)),
    max_size=12,
)


@settings(deadline=None, max_examples=150)
@given(shape=shapes(), steps=steps)
def test_counts_what_was_routed(shape: Shape, steps: list[tuple[str, int]]) -> None:
    """Over any sequence of steps: padding, dummy steps, ids that are no expert and rows that name one twice are left
    out, all else is exact.
    """
    recorder, reference = shape.recorder(), shape.reference()
    reals = [0] * shape.ubatches
    for kind, seed in steps:
        random = np.random.default_rng(seed)
        if kind == "reset":
            recorder.reset()
            reference.rows.clear()
            continue
        runs = random.integers(1, shape.max_tokens // shape.sequence_parallel + 1, shape.ubatches)
        batches = [routed(random, shape, int(rows) * shape.sequence_parallel) for rows in runs]
        if kind != "dummy":
            reals = [int(random.integers(0, len(ids) + 1)) for ids in batches]
            recorder.expect(reals)
        for ubatch, (ids, real) in enumerate(zip(batches, reals, strict=True)):
            stage(recorder, shape, ids, real, ubatch)
        if kind == "real":
            recorder.fold()
            for ids, real in zip(batches, reals, strict=True):
                reference.rows += counted(shape, ids, real)
        else:
            recorder.drop()
    reference.agrees_with(recorder)
    assert (recorder.stage == -1).all()


@pytest.mark.parametrize("chunk", [0, 1])
def test_sequence_parallel_padding(chunk: int) -> None:
    """Under sequence parallelism the padding is at the end of the batch, so the last rank has most of it."""
    shape = Shape(1, 4, 1, 8, 8, sequence_parallel=2, chunk=chunk)
    recorder = shape.recorder()
    ids = np.array([0, 1, 2, 3, 0, 1, 1, 1]).reshape(8, 1, 1)
    recorder.expect([5])
    stage(recorder, shape, ids, real=5)
    recorder.fold()
    assert recorder.load.tolist() == [[[1, 1, 1, 1]], [[1, 0, 0, 0]]][chunk]


def test_dummy_step_without_announcement_leaves_nothing() -> None:
    """An idle rank's dummy pass, longer than the next real one, must not reach that one's counts."""
    shape = Shape(1, 4, 1, 8, 8, sequence_parallel=2)
    recorder = shape.recorder()
    stage(recorder, shape, np.zeros((8, 1, 1), np.int64), real=8)
    recorder.drop()
    recorder.expect([4])
    stage(recorder, shape, np.full((4, 1, 1), 3), real=4)
    recorder.fold()
    assert recorder.load.tolist() == [[0, 0, 0, 2]]


@pytest.mark.parametrize("tokens", [3, 4, 5, 9])
def test_step_longer_than_the_ring_keeps_its_last_rows(tokens: int) -> None:
    """The ring holds the rows recorded last, also when one step has more of them than fit."""
    shape = Shape(1, 16, 1, 16, 4)
    recorder, reference = shape.recorder(), shape.reference()
    for first in (0, tokens):
        ids = (first + np.arange(tokens)).reshape(-1, 1, 1) % 16
        recorder.expect([tokens])
        stage(recorder, shape, ids, real=tokens)
        recorder.fold()
        reference.rows += list(ids)
    reference.agrees_with(recorder)
    # the others go to the spare row: a GPU leaves open which of two writes to one slot wins
    assert (recorder._sample[0, 4, 0] >= 0) == (tokens > 4)
    assert recorder.newest(4).ravel().tolist() == [token % 16 for token in range(2 * tokens - 4, 2 * tokens)]


def test_many_windows_keep_the_addresses() -> None:
    """Captured graphs hold the addresses: no step, reset or drop may change one, and a new window starts at zero."""
    shape = Shape(2, 8, 2, 16, 32, ubatches=2)
    recorder, random = shape.recorder(), np.random.default_rng(0)
    buffers = ("stage", "load", "pairs", "sample", "num_tokens")
    addresses = {name: getattr(recorder, name).data_ptr() for name in buffers}
    for window in range(20):
        reference = shape.reference()
        for _ in range(window % 4):
            batches = [routed(random, shape, 16) for _ in range(2)]
            recorder.expect([16, 7])
            for ubatch, (ids, real) in enumerate(zip(batches, (16, 7), strict=True)):
                stage(recorder, shape, ids, real, ubatch)
                reference.rows += counted(shape, ids, real)
            recorder.fold()
        reference.agrees_with(recorder)
        recorder.drop()
        recorder.reset()
        shape.reference().agrees_with(recorder)
        assert {name: getattr(recorder, name).data_ptr() for name in buffers} == addresses


@pytest.mark.parametrize(("experts", "top_k", "tokens"), [(256, 8, 5), (6, 3, 7), (9, 1, 1)])
def test_every_layer_begins_where_a_compiler_needs_no_copy(experts: int, top_k: int, tokens: int) -> None:
    """Inductor clones what lies at other addresses than multiples of 16 bytes, and copies it back."""
    recorder = Recorder(4, experts, top_k, tokens, 8, CPU, num_ubatches=2)
    parts = [part for layer in range(4) for ubatch in range(2) for part in recorder.passing(layer, ubatch)]
    assert all(part.data_ptr() % 16 == 0 and part.is_contiguous() for part in parts)


def test_diagonal_of_coactivation_is_the_load() -> None:
    """Co-activation counts tokens: symmetric, and an expert with itself is its load."""
    shape = Shape(2, 8, 3, 64, 16)
    recorder, random = shape.recorder(), np.random.default_rng(1)
    recorder.expect([64])
    stage(recorder, shape, routed(random, shape, 64), real=64)
    recorder.fold()
    pairs = coactivation(recorder)
    assert torch.equal(pairs, pairs.transpose(1, 2))
    assert torch.equal(pairs.diagonal(dim1=1, dim2=2), recorder.load)
    assert recorder.load.sum() > 0


def test_expect_takes_the_larger_of_two_passes() -> None:
    """Several passes before a fold (a draft's) are bounded by the longest, and never by more than the buffer."""
    shape = Shape(1, 4, 1, 4, 4)
    recorder = shape.recorder()
    recorder.expect([3])
    recorder.expect([1])
    stage(recorder, shape, np.full((3, 1, 1), 2), real=3)
    recorder.fold()
    assert recorder.load.tolist() == [[0, 0, 3, 0]]
    recorder.expect([100])
    stage(recorder, shape, np.full((4, 1, 1), 1), real=100)
    recorder.fold()
    assert recorder.load.tolist() == [[0, 4, 3, 0]]


def test_single_steps_of_a_plans_window_are_kept() -> None:
    """Real ones with what they counted, dummy ones empty; not a trial pass that no step follows, nor what passes
    outside a plan's window.
    """
    shape = Shape(1, 4, 1, 4, 8)
    recorder = shape.recorder()

    def step(expert: int, over: Callable[[], None], pairs: bool = True) -> None:
        recorder.count(True, pairs)
        recorder.expect([2])
        stage(recorder, shape, np.full((2, 1, 1), expert), real=2)
        over()

    step(0, recorder.fold)
    step(1, recorder.drop)
    step(2, recorder.skip)
    step(3, recorder.fold, pairs=False)
    step(3, recorder.skip, pairs=False)
    step(3, recorder.fold)
    assert recorder.steps.numbers == [0, 1, 2]
    assert recorder.steps.loads[:3, 0].tolist() == [[2, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 2]]
    assert recorder.load.tolist() == [[2, 0, 0, 4]]
    recorder.reset()
    assert recorder.steps.numbers == []


def test_nothing_depends_on_data_but_values() -> None:
    """Counting must not wait for the device: no shape or branch reads data. Fake tensors have none: reading raises."""
    with FakeTensorMode():
        recorder = Recorder(2, 8, 2, 16, 32, CPU, num_ubatches=2)
        recorder.expect([10, 4])
        recorder.fold()
        recorder.skip()
        recorder.reset()
        assert recorder.newest(5).shape == (2, 5, 2)


def test_nbytes_is_what_is_held() -> None:
    """The size that the log reports is that of all tensors held."""
    recorder = Recorder(2, 8, 2, 16, 32, CPU)
    values = [one for value in vars(recorder).values() for one in (value if isinstance(value, tuple) else (value,))]
    values.append(recorder.steps.loads)
    tensors = [value for value in values if isinstance(value, torch.Tensor) and value.dim()]
    storages = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}
    assert recorder.nbytes() == sum(storages.values())
