"""A merged encoder with its head: classifies pictures, and is stored without the run and without a text tower."""
