"""The serving benchmark: real servers, the engines' own load generators, one table that ranks nothing in noise."""
