"""How the engines' environments are made; standard library only, because it runs before anything is installed."""
