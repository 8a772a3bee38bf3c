"""Shared tools that know nothing of the project: errors, rules, files, locks, signals, processes."""
