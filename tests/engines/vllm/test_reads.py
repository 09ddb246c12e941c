"""The table of what the adapter reads, asked of the classes of the installed vLLM."""

from __future__ import annotations

from eplb_plugin.engines.attributes import missing
from eplb_plugin.engines.vllm.reads import MODEL_READS, READS, SOME_READS


def test_the_installed_release_has_all_of_them() -> None:
    assert missing({**READS, **MODEL_READS}) == []


def test_of_what_some_releases_have_it_has_the_buffer_and_one_kind_of_mega_moe_layer() -> None:
    lacking = {str(one).partition(": found")[0] for one in missing(SOME_READS)}
    assert [row for row in SOME_READS if row not in lacking] == [
        "vllm.distributed.eplb.eplb_state:EplbModelState",
        "vllm.models.deepseek_v4.nvidia.model:DeepseekV4MegaMoEExperts",
    ]
