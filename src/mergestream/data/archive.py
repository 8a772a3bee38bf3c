"""What every reader of an official archive shares: one line about files that are missing or damaged, and file lists."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from mergestream.data.images import ImageFiles
from mergestream.data.source import Split
from mergestream.runtime.errors import UserError


@contextmanager
def official(
    dataset: str,
    path: Path,
    root: str,
    *,
    archive: str,
    size: str,
    place: str,
    into: str = "",
    unpack: bool = True,
    download: bool | None = None,
    mirror: bool = False,
) -> Iterator[None]:
    """Around the reading of a dataset's own files: whatever goes wrong becomes what to fetch, and where to put it.

    Args:
        dataset: its name in the ``dataset`` group.
        path: the file or folder that is looked for.
        root: ``data.root``.
        archive: names of the files to fetch.
        size: of these files, for people.
        place: where they are published.
        into: folder below `root` that they belong into.
        unpack: whether they are unpacked there, or put there as they are.
        download: ``data.download``; None where that cannot fetch them.
        mirror: whether ``dataset.mirror`` can stand in.

    Raises:
        UserError: instead of any other exception.
    """
    try:
        with contained():
            yield
    except UserError:
        raise
    except ImportError as error:
        raise UserError(f"dataset={dataset} needs the package {error.name}; type: pip install {error.name}") from error
    except Exception as error:  # the readers of a dozen formats raise what they like at damaged files
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        exists = path.exists()
        plain = isinstance(error, FileNotFoundError) or "not found" in reason or "not present" in reason
        if exists:
            state = f"is unreadable or incomplete ({reason})"
        else:
            state = "is not there" if plain else f"is not there ({reason})"  # such as why a download failed
        manner = "unpack it in" if unpack else "put it into"
        advice = f"fetch {archive} ({size}) from {place} and {manner} {Path(root) / into} (data.root={root})"
        if download is not None:
            # Torchvision fetches nothing where it finds a folder, so that what is damaged must go first.
            first = f"delete {path} and " if exists else ""
            again = "type the same command again" if download else "write data.download=true"
            advice = f"{first}{again} to fetch it ({size}), or {advice}"
        if mirror:
            advice += "; or write dataset.mirror=USER/NAME for a copy on the Hugging Face Hub"
        raise UserError(f"dataset={dataset} needs {path}, which {state}. {advice[0].upper()}{advice[1:]}") from error


@contextmanager
def contained() -> Iterator[None]:
    """Let no tar archive that is unpacked in the block write outside its folder: no ``..``, no links that lead out.

    Zip archives cannot, as Python unpacks them.
    """
    before = vars(tarfile.TarFile).get("extraction_filter")
    # Stored as the class attribute that Python reads; a plain function would be bound to the archive.
    tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)
    try:
        yield
    finally:
        tarfile.TarFile.extraction_filter = before


def check_partition(partition: int) -> None:
    """
    Raises:
        UserError: if it is none of the ten official ones.
    """
    if isinstance(partition, bool) or partition not in range(1, 11):
        raise UserError(f"dataset.partition must be a whole number from 1 to 10; got dataset.partition={partition}")


def file_split(paths: Sequence[str | Path], labels: Sequence[int], domains: Sequence[int] | None = None) -> Split:
    """A split of one file per image.

    Raises:
        UserError: if a file is not there.
    """
    if missing := next((path for path in paths if not Path(path).is_file()), None):
        raise UserError(f"{missing} is listed by its dataset but is not there; unpack the archive again")
    as_ids = None if domains is None else np.asarray(domains, dtype=np.int64)
    return Split(ImageFiles(paths), np.asarray(labels, dtype=np.int64), as_ids)


def spoken(name: str) -> str:
    """A class name as a prompt says it: ``great_white_shark`` is "great white shark"."""
    return " ".join(name.replace("_", " ").split())
