"""What a host thread asks of a device without waiting for it."""

from __future__ import annotations

import torch


def work_on(device: torch.device) -> None:
    """This thread's work is for `device`: a new thread's would go to the first one, with a context of its own there."""
    if device.type != "cpu":
        torch.accelerator.set_device_index(device)


def sent(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """values, on their way to `device`: through pinned memory if they come from the host's, so that nobody waits."""
    if values.device == device:
        return values
    if values.device.type == "cpu" and not values.is_pinned():
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def host_memory(*shape: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros on the host; where they cross to or from `device`, in memory that crosses without a stop."""
    return torch.zeros(*shape, dtype=dtype, device="cpu", pin_memory=device.type != "cpu")
