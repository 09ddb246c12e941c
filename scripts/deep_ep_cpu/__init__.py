"""DeepEP and DeepGEMM on CPUs, as far as PEO calls them.

No part of the package: no server needs it. Tests do, and so does `scripts/bench_low_latency` without GPUs, which cannot
import from the tests.
"""
