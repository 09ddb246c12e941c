"""The shared-memory queues between vLLM's processes: wait for a message instead of spinning.

A reader spins for a second after each message. That hides latency when every process has cores of its own; with eight
processes on two cores it takes most of the machine, and a step becomes several times slower.
"""

from collections.abc import Callable

from vllm.distributed.device_communicators.shm_broadcast import SpinCondition

from ..patching import replace

# The notice of a message may be lost (the sender drops it when it is not awaited), so look again this often: seldom
# enough to cost little, often enough that no step is seen to wait for it (20 ms made most steps take 20 or 40).
POLL_MS = 2


def install() -> None:
    replace(SpinCondition, "__init__", "self, is_reader, context, notify_address, busy_loop_s", _without_spinning)
    replace(SpinCondition, "wait", "self, timeout_ms", _looking_often)


def _without_spinning(original: Callable) -> Callable:
    def __init__(self, is_reader, context, notify_address, busy_loop_s=0):
        original(self, is_reader, context, notify_address, 0)

    return __init__


def _looking_often(original: Callable) -> Callable:
    def wait(self, timeout_ms=None):
        original(self, POLL_MS if timeout_ms is None else min(timeout_ms, POLL_MS))

    return wait
