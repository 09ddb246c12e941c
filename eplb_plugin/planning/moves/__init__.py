"""Single moves and swaps, and what each is worth: balance, locality, phases, labels, budget."""
