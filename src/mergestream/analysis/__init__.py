"""Analyses of task vectors: one module for each table and figure, and `analyze`, which writes them."""

from mergestream.analysis.run import analyze

__all__ = ["analyze"]
