"""What is compared: the same server with no EPLB, with vLLM's own EPLB, and with the plugin."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Layout:
    """How ranks are laid out; expert parallelism spans all of them."""

    tensor_parallel: int = 1
    data_parallel: int = 1

    @property
    def ranks(self) -> int:
        return self.tensor_parallel * self.data_parallel

    def arguments(self) -> list[str]:
        if self.ranks == 1:
            return []
        sizes = ["--tensor-parallel-size", str(self.tensor_parallel), "--data-parallel-size", str(self.data_parallel)]
        return [*sizes, "--enable-expert-parallel", "--api-server-count", "1"]


@dataclass(frozen=True)
class Eplb:
    """vLLM's own EPLB settings, the same in every arm that has EPLB."""

    redundant_experts: int
    window_size: int
    step_interval: int
    use_async: bool = True

    def arguments(self) -> list[str]:
        values = {
            "num_redundant_experts": self.redundant_experts,
            "window_size": self.window_size,
            "step_interval": self.step_interval,
            "use_async": str(self.use_async).lower(),
        }
        return [
            "--enable-eplb",
            *(word for name, value in values.items() for word in (f"--eplb-config.{name}", str(value))),
        ]


# fp32, because bf16 output changes with the placement (order of summation) on any engine; eager, because a tiny model
# gains nothing from compilation.
COMMON = ["--dtype", "float32", "--enforce-eager", "--max-model-len", "1024", "--max-num-seqs", "32"]


def arm_arguments(name: str, layout: Layout, eplb: Eplb, plugin_config: Path) -> list[str]:
    """vLLM's arguments for one arm: none, vanilla or affinity."""
    arguments = [*COMMON, *layout.arguments()]
    if name != "none":
        arguments += eplb.arguments()
    if name == "affinity":
        arguments += ["--eplb-plugin-config", str(plugin_config)]
    return arguments
