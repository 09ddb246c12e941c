"""Attributes of objects that engines and libraries hand to the plugin: by class, as it stands in their release.

Imports, calls and hooks are not listed: `check` reads them from the plugin's files. A module in the place of a class
stands for what it sets on objects of other classes. Calls of what is named here are checked as well.
"""

from __future__ import annotations

from typing import NamedTuple

from eplb_plugin.engines.sglang import reads as sglang
from eplb_plugin.engines.vllm import reads as vllm

from .uses import PythonFile, plugin_files

VLLM = {**vllm.READS, **vllm.MODEL_READS, **vllm.PEO_READS}
SGLANG = {**sglang.READS, **sglang.PEO_READS}
DEEP_EP = {"deep_ep:Buffer": "get_comm_stream group low_latency_combine low_latency_dispatch"}
DEEP_GEMM = {"deep_gemm": "get_num_sms set_num_sms"}
NIXL = {
    "nixl_cu12._api:nixl_agent": "add_remote_agent check_xfer_state get_agent_metadata get_new_notifs get_xfer_descs "
    "initialize_xfer register_memory release_xfer_handle send_notif transfer"
}


class Reliance(NamedTuple):
    """Files of the plugin that rely on a table, and what they call the objects it is about; no owners: all others'.

    some: rows of which a release may lack one, because the plugin asks first.
    """

    table: dict[str, str]
    paths: tuple[str, ...]
    owners: tuple[str, ...] = ()
    some: dict[str, str] = {}  # noqa: RUF012  # of a NamedTuple: nothing changes it

    def files(self) -> list[PythonFile]:
        return [file for pattern in self.paths for file in plugin_files(pattern)]


RELIANCES = {
    "vllm": Reliance(VLLM, ("engines/vllm/*.py", "engines/peo.py"), some=vllm.SOME_READS),
    "sglang": Reliance(SGLANG, ("engines/sglang/*.py",)),
    "deep_ep": Reliance(DEEP_EP, ("peo/cuda.py", "peo/streams.py", "engines/peo.py"), ("_buffer", "buffer")),
    "deep_gemm": Reliance(DEEP_GEMM, ("engines/peo.py",), ("deep_gemm",)),
    "nixl": Reliance(NIXL, ("migration/wires/nixl.py",), ("agent",)),
}
