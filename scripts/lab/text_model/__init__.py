"""A small mixture-of-experts model that has learned to read, so that its routing is learned and not painted."""
