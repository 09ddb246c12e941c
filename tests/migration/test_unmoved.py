"""What stays where it is: accepted where it cannot matter, made equal where that is certain to be right, or refused."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from eplb_plugin import PluginError
from eplb_plugin.migration.unmoved import Unmoved, refuse_unequal_values, unmoved
from processes import Ranks

SLOTS, RANKS = 4, 3


class Layer(torch.nn.Module):
    """A MoE layer of one rank, with a kernel that keeps tensors. scale: of its activations."""

    def __init__(self, scale: float = 1.0, **parameters: torch.Tensor) -> None:
        super().__init__()
        plain = {"w13_weight": torch.rand(SLOTS, 2), "w2_weight": torch.rand(SLOTS, 3)}
        scales = {"w13_input_scale": torch.tensor(scale), "w2_input_scale": torch.tensor([scale / 8]).expand(SLOTS)}
        for name, tensor in (plain | scales | parameters).items():
            self.register_parameter(name, torch.nn.Parameter(tensor, requires_grad=False))
        self.quant_method = SimpleNamespace(kernel=SimpleNamespace(config={}), layer=self)  # a cycle

    def unmoved(self, per_call: tuple[str, ...] = ()) -> Unmoved:
        return unmoved(self, dict(self.named_parameters()), {SLOTS}, per_call)


def test_a_tensor_whose_entries_differ_is_refused_by_its_path() -> None:
    """It would go on describing the experts that were there before; views of parameters move with them."""
    layer = Layer()
    kernel = layer.quant_method.kernel
    kernel.config["views"] = [layer.w2_weight.data.view(-1)[:SLOTS]]
    kernel.config["experts"] = torch.rand(SLOTS + 1)
    layer.unmoved()
    kernel.g1_alphas = torch.tensor([2.0, 2.0, 2.0, 2.5])
    with pytest.raises(PluginError, match=r"^Layer.quant_method.kernel.g1_alphas: found \[4\] torch.float32, expected"):
        layer.unmoved()


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("inner", [(), (3,), (2, 3)])
def test_entries_that_are_all_alike_are_kept_to_be_compared(dtype: torch.dtype, inner: tuple[int, ...]) -> None:
    """Strides of a kernel, a limit: the same for whatever expert is in the slot, of any type and shape."""
    layer = Layer()
    one = torch.arange(torch.Size(inner).numel()).reshape(inner).to(dtype)
    layer.quant_method.kernel.strides = torch.stack([one] * SLOTS)
    found = layer.unmoved().values
    assert torch.equal(found["Layer.quant_method.kernel.strides"].float(), one.float())
    other = torch.stack([one] * (SLOTS - 1) + [(one.float() + 1).to(dtype) if dtype is not torch.bool else ~one])
    layer.quant_method.kernel.strides = other
    with pytest.raises(PluginError, match="strides: found"):
        layer.unmoved()


def test_what_is_written_anew_in_every_call_is_not_looked_at() -> None:
    """By the name of the attribute, whatever is in it."""
    layer = Layer()
    layer.dispatcher = SimpleNamespace(workspace=torch.rand(SLOTS, 2))
    layer.quant_method.kernel.problem_sizes = torch.rand(SLOTS, 3)
    per_call = ("dispatcher", "problem_sizes")
    assert set(layer.unmoved(per_call).values) == {"w13_input_scale", "w2_input_scale"}
    for name in per_call:
        with pytest.raises(PluginError, match=rf"{name}.*: found \[4, "):
            layer.unmoved(tuple(other for other in per_call if other != name))


def agreed(rank: int, layer: Layer) -> tuple[float, float, str]:
    """The two scales afterwards, and what was logged; or why not."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("eplb_plugin")
    logger.addHandler(handler)
    logger.setLevel("INFO")
    try:
        refuse_unequal_values(lambda: {"layer 3": Layer(7.0).unmoved(), "layer 4": layer.unmoved()}, dist.group.WORLD)
    except PluginError as error:
        return 0.0, 0.0, str(error)
    finally:
        logger.removeHandler(handler)
    assert layer.w2_input_scale.stride(0) == 0
    return float(layer.w13_input_scale), float(layer.w2_input_scale[0]), " ".join(lines)


def equal_everywhere() -> Any:
    layer = Layer(2.0)
    layer.quant_method.kernel.strides = torch.full((SLOTS, 2), 7168)
    return agreed(dist.get_rank(), layer)


def scales_differ() -> Any:
    return agreed(dist.get_rank(), Layer(1.0 + dist.get_rank() % 2, w13_weight_scale_inv=torch.rand(SLOTS, 2)))


def strides_differ() -> Any:
    layer = Layer()
    layer.quant_method.kernel.strides = torch.full((SLOTS, 2), 7168 + (dist.get_rank() == 2))
    return agreed(dist.get_rank(), layer)


def inverse_beside() -> Any:
    scale = 1.0 + dist.get_rank()
    layer = Layer(scale)
    layer.quant_method.kernel.a1_gscale = torch.tensor(1 / scale)
    return agreed(dist.get_rank(), layer)


def folded_into_a_parameter() -> Any:
    return agreed(dist.get_rank(), Layer(1.0 + dist.get_rank(), fc1_dequant=torch.rand(SLOTS)))


def another_value() -> Any:
    return agreed(dist.get_rank(), Layer(w2_weight_shape=torch.tensor(dist.get_rank())))


def one_rank_has_more() -> Any:
    layer = Layer()
    if dist.get_rank() == 1:
        layer.quant_method.kernel.limit = torch.full((SLOTS,), 7.0)
    return agreed(dist.get_rank(), layer)


def one_rank_refuses() -> Any:
    layer = Layer()
    layer.quant_method.kernel.alphas = torch.ones(SLOTS) + torch.arange(SLOTS) * (dist.get_rank() == 1)
    return agreed(dist.get_rank(), layer)


@pytest.fixture(scope="module")
def ranks() -> Any:
    with Ranks(RANKS) as started:
        yield started


def test_equal_values_are_left_as_they_are(ranks: Ranks) -> None:
    assert ranks.run(equal_everywhere) == [(2.0, 0.25, "")] * RANKS


def test_the_largest_scale_of_all_ranks_serves_every_expert(ranks: Ranks) -> None:
    """In the memory of the parameters, which kernels hold; the rest is as it was; rank 0 says so once."""
    first, *others = ranks.run(scales_differ)
    assert first[:2] == (2.0, 0.25)
    assert first[2].startswith("2 static scales of activations were the largest of each rank's own experts")
    assert others == [(2.0, 0.25, "")] * (RANKS - 1)


@pytest.mark.parametrize(
    ("spoiled", "line"),
    [
        (strides_differ, "layer 4: Layer.quant_method.kernel.strides: found other values on rank 2 than on rank 0"),
        (inverse_beside, "layer 4: Layer.quant_method.kernel.a1_gscale: found other values on rank 1 than on rank 0"),
        (folded_into_a_parameter, "layer 4: w13_input_scale: found other values on rank 1 than on rank 0, expected"),
        (another_value, "layer 4: w2_weight_shape: found other values on rank 1 than on rank 0"),
        (one_rank_has_more, "layer 4: Layer.quant_method.kernel.limit: found other values on rank 1 than on rank 0"),
        (one_rank_refuses, "Layer.quant_method.kernel.alphas: found [4] torch.float32, expected a parameter, or"),
    ],
)
def test_other_values_are_refused_on_every_rank(ranks: Ranks, spoiled: Any, line: str) -> None:
    """By name: what an expert's weights or a kernel's constants were computed from must not change under them."""
    for *_, refusal in ranks.run(spoiled):
        assert refusal.startswith(line)
        assert "; fix: " in refusal
