"""What task vectors look like: one function per figure, all from the files of encoders; `run.analyze`."""

from mergestream.analysis.run import analyze

__all__ = ["analyze"]
