"""SGLang on CPUs with expert parallelism and EPLB: a test bed, in force in every arm of every comparison.

One file for each thing that the CPU engine lacks. All of it is replaced in `register`, which SGLang calls in each of
its processes before it makes anything, and before it applies the hooks that another plugin registers.
"""

import sys

from ..patching import UnknownEngine, say_in_force


def register() -> None:
    """SGLang's plugin entry point, called once per process; does nothing on another platform."""
    from sglang.srt.utils import is_cpu

    if not is_cpu():
        return

    import logging

    from . import device, experts, metering

    names = []
    try:
        for part in (device, experts, metering):
            if part.install():
                names.append(part.__name__.rpartition(".")[2])
    except UnknownEngine as error:
        sys.exit(f"eplb-cpu-engines: {error}")  # SGLang logs any other exception of a plugin and goes on
    say_in_force(logging.getLogger("sglang.eplb_cpu_engines"), names)
