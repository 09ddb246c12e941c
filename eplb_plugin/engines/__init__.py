"""Thin adapters: what an engine lends to the plugin, and nothing else.

Both engines have the same files for the same jobs:

startup_hooks    how a server learns that it should use the plugin; inert until it is asked for
support          which of the engine's settings fit, and why the others are refused
activation       turning the plugin on in a worker: everything that can be refused is refused here
worker_hooks     the hooks inside a worker: recording, the step tick, the engine's own EPLB
moe_layers       what must be known of a model's MoE layers, read from the layers; unknown kinds are refused
adapter          what the engine lends (ids, maps, groups) and what it gets back (placements)
dispatch_hook    from logical to physical expert ids, in place of the engine's own mapping
tables           the engine's maps, filled with the plugin's rows
peo              per-expert overlap
state            the plugin of this process

SGLang has besides `mover` (the cycle of a rebalance, which vLLM drives itself), `bounds` (its own settings that bound
ours) and what reads SGLang's own recordings.
"""
