"""What EPLB asks of the device's torch module."""

import pytest
import torch
from eplb_cpu_engines.patching import UnknownEngine
from eplb_cpu_engines.sglang import device


def test_what_is_missing_is_added_once(monkeypatch):
    """And a torch that has it by now is refused, so that the replacement goes when it is not needed any more."""
    for name in device._MISSING:
        monkeypatch.delattr(torch.cpu, name, raising=False)
    device.install()
    assert torch.get_device_module("cpu").is_current_stream_capturing() is False
    assert torch.get_device_module("cpu").empty_cache() is None
    with pytest.raises(UnknownEngine, match=r"found torch\.cpu with empty_cache"):
        device.install()
    for name in device._MISSING:
        monkeypatch.delattr(torch.cpu, name)
