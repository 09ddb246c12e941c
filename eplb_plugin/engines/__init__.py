"""Thin adapters: what an engine lends to the plugin, and nothing else."""
