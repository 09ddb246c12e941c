"""Where the copies of every expert go: pure functions on numpy arrays, deterministic."""
