"""Merging: checkpoints in, one merged checkpoint out."""

from mergestream.merging.engine import merge_checkpoints as merge_checkpoints
