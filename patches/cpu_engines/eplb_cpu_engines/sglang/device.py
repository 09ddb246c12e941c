"""What EPLB asks of the device's torch module: `torch.cpu` has no memory to give back, and captures nothing."""

import torch

from ..patching import require

_MISSING = {"empty_cache": lambda: None, "is_current_stream_capturing": lambda: False}


def install() -> bool:
    for name, function in _MISSING.items():
        require(f"torch.cpu without {name}", f"torch.cpu {'with' if hasattr(torch.cpu, name) else 'without'} {name}")
        setattr(torch.cpu, name, function)
    return True
