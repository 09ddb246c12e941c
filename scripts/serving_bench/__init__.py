"""The serving benchmark: arms measured in paired rounds on real servers, and the soak."""
