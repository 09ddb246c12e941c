"""How large a deployment may be: the widths of numbers that hold several things at once, and of buffers.

Whoever packs numbers names its limit here; what is beyond it is refused before anything is planned or recorded.
"""

from __future__ import annotations

MOST_NODES = 62  # a set of nodes is the bits of one int64, under dispatch `weighted` and `cover`
MOST_RANKS = 1 << 16  # packing: a rank is the low bits of a key, its load the high ones
MOST_EXPERTS = (1 << 15) - 1  # ids of logical experts are int16 in the recorder, in samples and in the planner's rows

# Counts: far from where sums of floats end. What is below is nothing, as of a window that has decayed.
MOST_COUNT, LEAST_COUNT = 1e30, 1e-30

# A replica of dispatch `cover` in one int32: its share in the low bits, then its node, then its slot.
MOST_WEIGHT = 255
NODE_SHIFT, SLOT_SHIFT = 8, 14
MOST_SLOTS = 1 << 31 - SLOT_SHIFT
