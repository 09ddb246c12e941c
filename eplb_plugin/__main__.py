"""`python -m eplb_plugin …`: the command line, where its console script is not on the path."""

from .cli import app

app()
