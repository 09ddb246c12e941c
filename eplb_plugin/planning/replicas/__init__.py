"""How many replicas an expert gets, on which nodes, and which of them are exchanged."""
