"""Nodes on one machine: namespaces with links of their own, which can be made slow."""
