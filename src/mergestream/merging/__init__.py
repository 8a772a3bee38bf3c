"""Merging: from the encoders of a run, or any checkpoints, to one merged file."""

from mergestream.merging.engine import merge_checkpoints as merge_checkpoints
from mergestream.merging.run import merge as merge
