"""PatchCamelyon, read by torchvision from the official HDF5 files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.datasets import PCAM

from mergestream.data.archive import official
from mergestream.data.protocol import templates
from mergestream.data.source import Source, Split, prompts

NAMES = ("lymph node", "lymph node containing metastatic tumor tissue")


class Patches:
    """The images of an HDF5 file, which is opened for each: an open one would not reach the processes of a loader."""

    def __init__(self, path: Path):
        import h5py

        self.path = str(path)
        with h5py.File(self.path) as file:
            self.length = len(file["x"])

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Image.Image:
        import h5py

        with h5py.File(self.path) as file:
            return Image.fromarray(file["x"][index])


def pcam(root: str, download: bool = False) -> Source:
    """262,144 + 32,768 patches of 96 px from scans of lymph nodes, without and with metastases.

    Raises:
        UserError: if the files are missing or damaged, or h5py is not installed.
    """
    with official(
        "pcam", Path(root) / "pcam", root,
        archive="the x and y files of train and test, camelyonpatch_level_2_split_*.h5.gz", size="7 GB",
        place="github.com/basveeling/pcam", download=download, into="pcam",
    ):  # fmt: skip
        import h5py  # noqa: F401 - torchvision would raise a RuntimeError that says nothing of a package

        train, test = (_split(PCAM(root, split=part, download=download)) for part in ("train", "test"))
    return Source(NAMES, prompts(NAMES, templates("pcam")), train, test)


def _split(part: PCAM) -> Split:
    images, targets = (part._base_folder / part._FILES[part._split][kind][0] for kind in ("images", "targets"))
    with part.h5py.File(targets) as file:
        labels = np.asarray(file["y"], dtype=np.int64).reshape(-1)
    return Split(Patches(images), labels)
