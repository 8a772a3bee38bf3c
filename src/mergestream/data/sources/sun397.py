"""SUN397, read by torchvision from the official archive, with the official lists of train and test images."""

from __future__ import annotations

from pathlib import Path

from torchvision.datasets import SUN397

from mergestream.data.archive import check_partition, file_split, official, spoken
from mergestream.data.protocol import templates
from mergestream.data.source import Source, Split, prompts
from mergestream.runtime.errors import UserError


def sun397(root: str, download: bool = False, partition: int = 1) -> Source:
    """19,850 + 19,850 photos of 397 scenes.

    Args:
        root: holds ``SUN397`` with the images, and with Training_01.txt and Testing_01.txt of Partitions.zip.
        download: fetch the images; the lists must be fetched by hand.
        partition: 1 to 10.

    Raises:
        UserError: if the archive or the lists are missing or damaged.
    """
    check_partition(partition)
    folder = Path(root) / "SUN397"
    with official(
        "sun397", folder, root,
        archive="SUN397.tar.gz", size="39 GB", place="vision.princeton.edu/projects/2010/SUN", download=download,
    ):  # fmt: skip
        found = SUN397(root, download=download)
    train, test = (_split(found, folder, f"{part}_{partition:02d}.txt") for part in ("Training", "Testing"))
    names = [spoken(name.replace("/", " ")) for name in found.classes]
    return Source(names, prompts(names, templates("sun397")), train, test)


def _split(found: SUN397, folder: Path, name: str) -> Split:
    if not (folder / name).is_file():
        raise UserError(
            f"dataset=sun397 needs the official list {folder / name}, which is not there. Fetch Partitions.zip (2 MB) "
            f"from vision.princeton.edu/projects/2010/SUN and unpack it in {folder}; dataset.partition is 1 to 10"
        )
    paths = [line.strip().lstrip("/") for line in (folder / name).read_text().splitlines() if line.strip()]
    # A line is /a/athletic_field/outdoor/sun_….jpg: the class is all between the letter and the file.
    strange = [path for path in paths if "/".join(path.split("/")[1:-1]) not in found.class_to_idx]
    if strange:
        raise UserError(f"{folder / name} must list images of the classes of ClassName.txt; it has {strange[0]}")
    labels = [found.class_to_idx["/".join(path.split("/")[1:-1])] for path in paths]
    return file_split([folder / path for path in paths], labels)
