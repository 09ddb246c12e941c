"""The check that EPLB is asked for on a GPU only: let CPUs pass it."""

import inspect
from typing import Any

import vllm.config.parallel as target

from ..patching import require


class _PassesAsGpu:
    """The platform, for one module's eyes: all its answers but the one to the EPLB check."""

    def __init__(self, platform: Any) -> None:
        self._platform = platform

    def __getattr__(self, name: str) -> Any:
        return getattr(self._platform, name)

    def is_cuda_alike(self) -> bool:
        return True


def install() -> None:
    # The answer may be a lie only because nothing else in the module asks.
    uses = inspect.getsource(target).count("is_cuda_alike")
    require("1 use of is_cuda_alike in vllm.config.parallel", f"{uses} use of is_cuda_alike in vllm.config.parallel")
    target.current_platform = _PassesAsGpu(target.current_platform)
