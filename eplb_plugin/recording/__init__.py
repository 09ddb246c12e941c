"""Device buffers that the engine's forward pass writes into, and the snapshot of them that planning reads."""
