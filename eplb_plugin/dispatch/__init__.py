"""Which copy of an expert a token goes to."""
