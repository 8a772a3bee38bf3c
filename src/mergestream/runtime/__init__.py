"""What all packages share and what knows nothing of the project: errors, rules, files, locks, signals, processes."""
