"""Merging: from a base and fine-tuned checkpoints to one merged file."""

from mergestream.merging.engine import merge_checkpoints as merge_checkpoints
