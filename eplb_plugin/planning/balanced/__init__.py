"""The fast path of `balanced`: every replica of an expert serves the same share, nodes do not matter."""
