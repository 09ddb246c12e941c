"""Per-expert overlap (PEO): the communication of some experts behind the computation of others."""
