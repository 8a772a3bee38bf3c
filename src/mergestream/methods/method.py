"""What a method decides: where each task starts, which data it sees, and, in a subclass, what happens in between."""

from __future__ import annotations

import pytorch_lightning as pl

from mergestream.errors import UserError

STARTS = ("previous", "base")
DATA = ("task", "all", "none")


class Method(pl.Callback):
    """A continual-learning method. It is a Lightning callback, so a subclass adds behaviour in hooks.

    Args:
        id: name of the method in the run directory; a subclass with hyper-parameters puts them into it.
        start: ``previous`` fine-tunes task t from θ_{t−1} (sequential), ``base`` from θ₀ (independent).
        data: ``task`` sees one task after another, ``all`` sees everything as one task (joint), ``none`` trains
            nothing (zero-shot).
    """

    def __init__(self, id: str, start: str = "previous", data: str = "task"):
        for key, value, options in (("start", start, STARTS), ("data", data, DATA)):
            if value not in options:
                raise UserError(f"method.{key} must be one of {', '.join(options)}; got method.{key}={value}")
        self.id, self.start, self.data = id, start, data
