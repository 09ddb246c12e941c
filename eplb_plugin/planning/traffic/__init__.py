"""Which nodes a token visits, and what that costs: one module per dispatch rule, one for changes."""
