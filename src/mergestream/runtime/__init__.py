"""What every package uses and that knows nothing of the project: errors, rules, files, locks, signals, processes, seeds."""
