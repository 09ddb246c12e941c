"""Which replica of an expert a token goes to."""
