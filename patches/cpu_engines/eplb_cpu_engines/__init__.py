"""Test bed: lets stock, unmodified engines run expert parallelism and EPLB on CPUs. Not for production."""
