"""mergestream: continual learning of CLIP by model merging."""

__version__ = "0.1.0"
