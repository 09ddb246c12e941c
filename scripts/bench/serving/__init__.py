"""The serving benchmark: arms on the user's machine, in paired rounds on nodes with limited links, and the soak."""
