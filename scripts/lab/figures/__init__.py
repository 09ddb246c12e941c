"""Pictures for the documentation, drawn from computed results."""
