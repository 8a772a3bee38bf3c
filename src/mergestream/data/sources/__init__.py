"""One file per dataset: a function that reads it and returns a `Source`."""
