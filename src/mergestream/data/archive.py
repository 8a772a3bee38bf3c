"""What the readers of official archives share: error messages, safe extraction, file lists and class names."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from mergestream.data.images import ImageFiles
from mergestream.data.source import Split
from mergestream.runtime.errors import UserError, first_line


@contextmanager
def archive_errors(
    dataset: str,
    path: Path,
    root: str,
    *,
    files: str,
    size: str,
    website: str,
    folder: str = "",
    unpack: bool = True,
    download: bool | None = None,
    mirror: bool = False,
) -> Iterator[None]:
    """Replace any error in the block by one line that says which files to fetch and where to put them.

    Args:
        dataset: option of the ``dataset`` group.
        path: file or folder that the block reads.
        root: ``data.root``.
        files: names of the files to fetch.
        size: their size, such as "170 MB".
        website: where they are published.
        folder: folder below `root` that they belong in.
        unpack: whether they are unpacked there or stay as they are.
        download: ``data.download``; None if the dataset cannot be downloaded.
        mirror: whether the dataset has the key ``dataset.mirror``.

    Raises:
        UserError: in place of any other exception.
    """
    try:
        with safe_extraction():
            yield
    except UserError:
        raise
    except ImportError as error:
        raise UserError(f"dataset={dataset} needs the package {error.name}; type: pip install {error.name}") from error
    except Exception as error:  # each of a dozen file formats raises exceptions of its own on damaged files
        where = f"{'unpack it in' if unpack else 'put it into'} {Path(root) / folder} (data.root={root})"
        advice = f"fetch {files} ({size}) from {website} and {where}"
        if download is not None:
            # Torchvision skips the download if the folder exists, so damaged files must be deleted first.
            delete = f"delete {path} and " if path.exists() else ""
            again = "run the same command again" if download else "write data.download=true"
            advice = f"{delete}{again} to fetch it ({size}), or {advice}"
        if mirror:
            advice += "; or write dataset.mirror=USER/NAME to use a copy on the Hugging Face Hub"
        advice = advice[0].upper() + advice[1:]
        raise UserError(f"dataset={dataset} needs {path}, which {_problem(path, error)}. {advice}") from error


def _problem(path: Path, error: Exception) -> str:
    reason = first_line(error)
    if path.exists():
        return f"is unreadable or incomplete ({reason})"
    if isinstance(error, FileNotFoundError) or "not found" in reason or "not present" in reason:
        return "does not exist"
    return f"does not exist ({reason})"  # the reason tells, for example, why a download failed


@contextmanager
def safe_extraction() -> Iterator[None]:
    """Reject tar archives unpacked in the block that would write outside their folder, by ``..`` or by links.

    Python's zipfile needs no such filter: it removes ``..`` and writes links as plain files.
    """
    before = vars(tarfile.TarFile).get("extraction_filter")
    # A staticmethod: Python reads the class attribute, and a plain function would be bound to the archive.
    tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)
    try:
        yield
    finally:
        tarfile.TarFile.extraction_filter = before


def file_split(paths: Sequence[str | Path], labels: Sequence[int], domains: Sequence[int] | None = None) -> Split:
    """Return a split with one file per image.

    Raises:
        UserError: if a file does not exist.
    """
    if missing := next((path for path in paths if not Path(path).is_file()), None):
        raise UserError(f"{missing} is listed by its dataset but does not exist; unpack the archive again")
    domain_ids = None if domains is None else np.asarray(domains, dtype=np.int64)
    return Split(ImageFiles(paths), np.asarray(labels, dtype=np.int64), domain_ids)


def readable_name(name: str) -> str:
    """Return a class name as it appears in a prompt: ``great_white_shark`` becomes "great white shark"."""
    return " ".join(name.replace("_", " ").split())
