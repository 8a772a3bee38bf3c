"""PatchCamelyon, read by torchvision from the official HDF5 files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.datasets import PCAM

from mergestream.data.archive import archive_errors
from mergestream.data.protocol import templates
from mergestream.data.source import Source, Split, prompts

NAMES = ("lymph node", "lymph node containing metastatic tumor tissue")


class Patches:
    """The images of an HDF5 file, reopened for each image: loader processes cannot share an open file."""

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
    """Return PatchCamelyon: 262,144 training and 32,768 test patches of 96 px from scans of lymph nodes.

    Raises:
        UserError: if the files are missing or damaged, or h5py is not installed.
    """
    with archive_errors(
        "pcam", Path(root) / "pcam", root,
        files="the x and y files of train and test, camelyonpatch_level_2_split_*.h5.gz", size="7 GB",
        website="github.com/basveeling/pcam", download=download, folder="pcam",
    ):  # fmt: skip
        import h5py  # noqa: F401 - torchvision's own RuntimeError does not name the package

        train, test = (_split(PCAM(root, split=part, download=download)) for part in ("train", "test"))
    return Source(NAMES, prompts(NAMES, templates("pcam")), train, test)


def _split(part: PCAM) -> Split:
    images, targets = (part._base_folder / part._FILES[part._split][kind][0] for kind in ("images", "targets"))
    with part.h5py.File(targets) as file:
        labels = np.asarray(file["y"], dtype=np.int64).reshape(-1)
    return Split(Patches(images), labels)
