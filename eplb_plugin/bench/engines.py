"""Every engine by its name, and how its ranks are laid out on a machine without GPUs."""

from .engine import Layout
from .sglang import SGLANG
from .vllm import VLLM

ENGINES = {engine.name: engine for engine in (VLLM, SGLANG)}
# SGLang has no all-to-all on a CPU: both ranks route every token, and each counts as the owner of half of them
LAYOUTS = {"vllm": Layout(data_parallel=2), "sglang": Layout(tensor_parallel=2)}
