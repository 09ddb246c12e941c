"""The half of the backend that would compile. Triton's interpreter takes every kernel before it is asked."""

from typing import Any, NoReturn

from triton.backends.compiler import BaseBackend, GPUTarget


class CpuBackend(BaseBackend):
    @staticmethod
    def supports_target(target: GPUTarget) -> bool:
        return target.backend == "cpu"

    def hash(self) -> str:
        return "cpu"

    def parse_options(self, options: dict) -> NoReturn:
        raise NotImplementedError("found a Triton kernel to compile for a CPU, expected none: set TRITON_INTERPRET=1")

    def add_stages(self, stages: dict, options: Any, language: Any = None) -> None: ...  # options come first

    def load_dialects(self, context: Any) -> None: ...

    def get_module_map(self) -> dict:
        return {}
