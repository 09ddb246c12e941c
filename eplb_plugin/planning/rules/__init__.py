"""One class per dispatch rule: how the solver asks it what a placement would cost."""
