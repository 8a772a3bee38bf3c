"""The commands: one module each, with a `main` that its entry script and its console script call."""
