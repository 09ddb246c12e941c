"""One layer: experts onto nodes and ranks, from scratch or repaired."""
