"""The Triton backend `cpu`: found by vLLM's check, active where it is named, and no compiler."""

import subprocess
import sys

import pytest

pytest.importorskip("triton")

from eplb_cpu_engines.triton_backend import ENVIRONMENT
from eplb_cpu_engines.triton_backend.compiler import CpuBackend
from triton.backends import backends
from triton.backends.compiler import GPUTarget

KERNEL = """
import torch, triton, triton.language as tl

@triton.jit
def double(x, count, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(x + at, tl.load(x + at, mask=at < count) * 2, mask=at < count)

x = torch.arange(5)
double[(3,)](x, 5, BLOCK=2)
print(x.tolist(), triton.runtime.driver.active.get_current_target().backend)
"""


def run(folder, **environment):
    file = folder / "kernel.py"
    file.write_text(KERNEL)
    return subprocess.run([sys.executable, file], env=environment, capture_output=True, text=True)


def test_it_is_out_of_the_way_unless_named(monkeypatch):
    """Beside a GPU's backend a second active one would be an error of Triton's."""
    driver = backends["cpu"].driver
    monkeypatch.delenv("TRITON_DEFAULT_BACKEND", raising=False)
    assert not driver.is_active()
    monkeypatch.setenv("TRITON_DEFAULT_BACKEND", "cpu")
    assert driver.is_active()


def test_kernels_are_interpreted(tmp_path):
    """In the environment that the test bed sets for itself and the processes that it starts."""
    done = run(tmp_path, **ENVIRONMENT)
    assert done.stdout == "[0, 2, 4, 6, 8] cpu\n", done.stderr


def test_a_kernel_that_would_be_compiled_is_refused(tmp_path):
    """One line says what is missing."""
    assert CpuBackend.supports_target(GPUTarget("cpu", 0, 1))
    done = run(tmp_path, TRITON_DEFAULT_BACKEND="cpu")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.endswith("found a Triton kernel to compile for a CPU, expected none: set TRITON_INTERPRET=1"), last
