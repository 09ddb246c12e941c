"""What of SGLang's configuration decides whether the plugin fits, and what is refused, with the reason."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

from ...errors import mismatch
from ...plan_types import WEIGHED, Dispatch
from ...settings.config import PluginConfig
from ..settings import ENVIRONMENT, FLAG

AFFINITY = "affinity"  # on SGLang's command line it means this plugin; the settings' policy decides what is planned
_RULES: dict[str, Dispatch] = {"static": "nearest", "dynamic": "hash"}  # SGLang's --ep-dispatch-algorithm -> our rule
DISPATCH = (*WEIGHED, *_RULES.values())
_MEGA = ("megamoe", "flashinfer_megamoe")


@dataclass(frozen=True)
class Layout:
    """As asked for on a command line, or, in a scheduler, as resolved; None = SGLang will decide.

    all_to_all: backend that sends tokens to experts; "none" = every rank routes every token.
    weight_cache: who owns the memory of the weights; "off" = this process.
    local_control: ranks handle a request to load weights at passes of their own.
    together: passes, or halves of one, that run at the same time; prefill_graphs: of captured prompts.
    """

    enable_eplb: bool
    algorithm: str
    tp_size: int
    pp_size: int
    ep_size: int | None
    attention_dp: bool
    context_parallel: bool
    all_to_all: str | None
    dispatch: str | None
    recorder_mode: str | None
    elastic: str | None
    lora: bool
    weight_cache: str
    local_control: bool
    together: bool
    prefill_graphs: bool | None

    @classmethod
    def requested(cls, args: argparse.Namespace) -> Layout:
        """From a parsed command line, before SGLang resolves it."""
        return cls(
            enable_eplb=args.enable_eplb,
            algorithm=args.eplb_algorithm,
            tp_size=args.tp_size,
            pp_size=args.pp_size,
            ep_size=args.ep_size if args.ep_size > 1 else None,
            attention_dp=args.enable_dp_attention,
            context_parallel=args.enable_prefill_cp or args.attn_cp_size > 1,
            all_to_all=None,
            dispatch=args.ep_dispatch_algorithm,
            recorder_mode=args.expert_distribution_recorder_mode,
            elastic=args.elastic_ep_backend,
            lora=bool(args.enable_lora or args.lora_paths),
            weight_cache=args.weight_cache_mode,
            local_control=args.enable_dp_attention_local_control_broadcast,
            together=args.enable_two_batch_overlap or args.enable_pdmux,
            prefill_graphs=None,
        )

    @classmethod
    def resolved(cls) -> Layout:
        """In a scheduler process, from SGLang's published configuration."""
        from sglang.srt.runtime_context import get_disagg, get_exec, get_lora, get_model, get_parallel

        moe, parallel = get_exec().moe, get_parallel()
        return cls(
            enable_eplb=moe.enable_eplb,
            algorithm=moe.eplb_algorithm,
            tp_size=parallel.tp_size,
            pp_size=parallel.pp_size,
            ep_size=parallel.moe_ep_size,
            attention_dp=parallel.attn_dp_size > 1,
            context_parallel=parallel.attn_cp_size > 1,
            all_to_all=moe.moe_a2a_backend or "none",
            dispatch=moe.ep_dispatch_algorithm,
            recorder_mode=moe.expert_distribution_recorder_mode,
            elastic=moe.elastic_ep_backend,
            lora=bool(get_lora().enable_lora or get_lora().lora_paths),
            weight_cache=get_model().weight_cache_mode,
            local_control=parallel.enable_dp_attention_local_control_broadcast,
            together=get_exec().overlap.enable_two_batch_overlap or get_disagg().enable_pdmux,
            prefill_graphs=get_exec().graph.cuda_graph_config.prefill.backend != "disabled",
        )

    @property
    def rules(self) -> tuple[Dispatch, ...]:
        """What can choose a replica, best first: our tables, or SGLang itself by this rule of ours."""
        return *WEIGHED, _RULES[self.dispatch or "dynamic"]

    @property
    def owner_group_size(self) -> int:
        """Consecutive ranks that route the same token: all without an all-to-all, else each its own."""
        assert self.ep_size is not None
        return self.ep_size if self.all_to_all == "none" else 1


def refuse_unsuited(config: PluginConfig | None, layout: Layout) -> None:
    """Raises PluginError where the engine and the settings (None: not given) do not fit together."""
    away = f"or remove {FLAG} / unset {ENVIRONMENT}"
    checks: list[tuple[str, Any, bool, str, str]] = [
        # what, found, whether that is refused, what is expected, how to mend it
        ("enable_eplb", False, not layout.enable_eplb, "--enable-eplb, which the plugin builds on",
         f"add --enable-eplb, {away}"),
        ("eplb_algorithm", layout.algorithm, layout.algorithm != AFFINITY, f"{AFFINITY}, which means the plugin here",
         f"add --eplb-algorithm {AFFINITY}, {away}"),
        ("elastic_ep_backend", layout.elastic, layout.elastic not in (None, "none"), "a fixed EP group",
         "remove --elastic-ep-backend, or the plugin's settings"),
        ("pp_size", layout.pp_size, layout.pp_size != 1, "1: all ranks of the server are one EP group",
         "remove --pp-size"),
        ("ep_size", layout.ep_size, layout.ep_size not in (None, layout.tp_size),
         f"{layout.tp_size} (the TP size): all ranks of the server are one EP group",
         f"--ep-size {layout.tp_size}"),
        ("lora", True, layout.lora, "no LoRA: adapters of experts are not moved with them", "remove --enable-lora"),
        ("weight_cache_mode", layout.weight_cache, layout.weight_cache != "off",
         "off: experts are moved in memory that other servers would share", "remove --weight-cache-mode"),
        ("local_control_broadcast", True, layout.local_control,
         "requests that all ranks handle at the same pass: loading weights ends a move, which takes all of them",
         "remove --enable-dp-attention-local-control-broadcast"),
        ("recorder_mode", layout.recorder_mode, layout.recorder_mode not in (None, "stat", "stat_approx"),
         "stat or stat_approx, the modes that can drive EPLB", "--expert-distribution-recorder-mode stat"),
        ("ep_dispatch_algorithm", layout.dispatch, layout.dispatch not in (None, *_RULES),
         "static or dynamic, which choose copies as the planner assumes", "leave it out"),
        ("moe_a2a_backend", layout.all_to_all, layout.all_to_all in _MEGA, "a backend whose routing the plugin can see",
         "use another backend, or SGLang's own EPLB"),
        ("attention", "data parallel without an all-to-all", layout.attention_dp and layout.all_to_all == "none",
         "rows that are tokens: padding of other ranks is gathered among them", "add --moe-a2a-backend deepep"),
        ("attention", "context parallel", layout.context_parallel, "rows in the order of their tokens",
         "remove the context parallelism, or the plugin's settings"),
    ]  # fmt: skip
    for what, found, refused, expected, fix in checks:
        if refused:
            raise mismatch(what, found=found, expected=expected, fix=fix)
    if config is None:
        return
    if config.exact is not None:
        _refuse_exact(config, layout)
    if layout.dispatch:  # else SGLang has not chosen yet
        config.dispatch_among(layout.rules)
    if layout.ep_size is not None:
        config.topology_for(layout.ep_size, slots_per_rank=1, hosts=["not known yet"] * layout.ep_size)


def _refuse_exact(config: PluginConfig, layout: Layout) -> None:
    if config.dispatch_among(DISPATCH) not in WEIGHED:
        expected, fix = f"auto or one of {', '.join(WEIGHED)} for exact: SGLang maps the rest", "exact: null"
        raise mismatch("dispatch", found=config.dispatch, expected=expected, fix=fix)
    if layout.together:
        expected = "one pass at a time for exact: two would exchange their counts in an order of their own"
        fix = "remove --enable-two-batch-overlap and --enable-pdmux, or exact: null"
        raise mismatch("batches", found="two at once", expected=expected, fix=fix)
    if layout.prefill_graphs and layout.all_to_all != "none":
        expected = "none for exact with an all-to-all: a rank may replay one while another runs its prompt without"
        fix = "add --cuda-graph-backend-prefill disabled, or exact: null"
        raise mismatch("graphs of prompts", found="captured", expected=expected, fix=fix)
