"""PatchCamelyon, read by torchvision from the official HDF5 files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torchvision.datasets import PCAM

from mergestream.data.archive import official
from mergestream.data.images import Samples
from mergestream.data.protocol import templates
from mergestream.data.source import Source, Split, prompts

NAMES = ("lymph node", "lymph node containing metastatic tumor tissue")


def pcam(root: str, download: bool = False) -> Source:
    """262,144 + 32,768 patches of 96 px from scans of lymph nodes, without and with metastases.

    Raises:
        UserError: if the files are missing or damaged, or h5py is not installed.
    """
    with official(
        "pcam", Path(root) / "pcam", root,
        archive="the x and y files of train and test, camelyonpatch_level_2_split_*.h5.gz", size="7 GB",
        place="github.com/basveeling/pcam", download=True,
    ):  # fmt: skip
        train, test = (_split(PCAM(root, split=part, download=download)) for part in ("train", "test"))
    return Source(NAMES, prompts(NAMES, templates("pcam")), train, test)


def _split(part: PCAM) -> Split:
    name = part._FILES[part._split]["targets"][0]
    with part.h5py.File(part._base_folder / name) as file:
        labels = np.asarray(file["y"], dtype=np.int64).reshape(-1)
    return Split(Samples(part), labels)
