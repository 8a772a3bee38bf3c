"""The run directory: where it is, what is in it, and how damage to it is found and repaired."""
