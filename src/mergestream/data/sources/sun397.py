"""SUN397, read by torchvision from the official archive and the official lists of training and test images."""

from __future__ import annotations

from pathlib import Path

from torchvision.datasets import SUN397

from mergestream.data.archive import archive_errors, file_split, readable_name
from mergestream.data.manifest import split_by_draw
from mergestream.data.protocol import templates
from mergestream.data.source import Source, Split, prompts
from mergestream.runtime.errors import UserError
from mergestream.runtime.rules import require_whole


def sun397(root: str, download: bool = False, partition: int = 1, mtil: bool = False) -> Source:
    """Return SUN397: 19,850 training and 19,850 test photos of 397 scenes.

    Args:
        root: has the folder ``SUN397`` with the images, and Training_01.txt and Testing_01.txt from Partitions.zip.
        download: whether to download the images; the lists must be fetched by hand.
        partition: 1 to 10.
        mtil: whether all 108,754 images are divided as in MTIL, 87,003 for training and 21,751 for testing
            (`split_by_draw`), without the lists. MTIL's own code draws from files in the order in which a file system
            lists them; here they are sorted.

    Raises:
        UserError: if the archive or the lists are missing or damaged.
    """
    require_whole("dataset.partition", partition, 1, 10)
    folder = Path(root) / "SUN397"
    with archive_errors(
        "sun397", folder, root,
        files="SUN397.tar.gz", size="39 GB", website="vision.princeton.edu/projects/2010/SUN", download=download,
    ):  # fmt: skip
        found = SUN397(root, download=download)
    names = [readable_name(name.replace("/", " ")) for name in found.classes]
    said = prompts(names, templates("sun397"))
    if mtil:
        paths, labels = zip(*sorted(zip(found._image_files, found._labels, strict=True)), strict=True)
        at_train, at_test, record = split_by_draw([path.relative_to(folder).as_posix() for path in paths])
        everything = file_split(paths, labels)
        return Source(names, said, everything.subset(at_train), everything.subset(at_test), notes=record)
    train, test = (_split(found, folder, f"{part}_{partition:02d}.txt") for part in ("Training", "Testing"))
    return Source(names, said, train, test)


def _split(found: SUN397, folder: Path, name: str) -> Split:
    if not (folder / name).is_file():
        raise UserError(
            f"dataset=sun397 needs the official list {folder / name}, which does not exist. Fetch Partitions.zip "
            f"(2 MB) from vision.princeton.edu/projects/2010/SUN and unpack it in {folder}"
        )
    paths = [line.strip().lstrip("/") for line in (folder / name).read_text().splitlines() if line.strip()]
    # A line is /a/athletic_field/outdoor/sun_….jpg: the class is everything between the letter and the file.
    strange = [path for path in paths if "/".join(path.split("/")[1:-1]) not in found.class_to_idx]
    if strange:
        raise UserError(f"{folder / name} must list images of the classes of ClassName.txt; it has {strange[0]}")
    labels = [found.class_to_idx["/".join(path.split("/")[1:-1])] for path in paths]
    return file_split([folder / path for path in paths], labels)
