"""mergestream: continual learning of CLIP by model merging."""

import importlib
import os
from typing import Any

__version__ = "0.1.0"

# OpenMP threads that spin while they wait starve each other as soon as two processes share the cores: a training step
# of the tiny CLIP then takes seconds instead of 45 ms. With a short spin it takes 100 ms, and alone it loses nothing.
# Read by the OpenMP runtime when torch loads it; a value that the user set stays.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def __getattr__(name: str) -> Any:
    """Return `Classifier`, which takes seconds to import, when somebody asks for it."""
    if name == "Classifier":  # by its path, since no room below may see it
        return importlib.import_module("mergestream.classifier.classifier").Classifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
