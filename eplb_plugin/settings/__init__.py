"""What a user may tune: the sections, the whole, and what is said of a wrong value."""
