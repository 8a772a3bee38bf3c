"""Write handwritten digits as PNG files: ``python scripts/digits_as_pictures.py TASK DIGIT …``; see docs/arrivals.md.

Of each digit, 60 scans go to pictures/TASK/train/digit_DIGIT, 20 to pictures/TASK/test/digit_DIGIT, and 10 others to
new, as pictures to classify.
"""

import sys
from pathlib import Path

from mergestream.data.source import Split
from mergestream.data.sources.digits import digits


def write(folder: Path, split: Split, label: int, name: str, numbers: slice) -> None:
    """Write some scans of a digit, named after the digit and the number of the scan."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in (split.labels == label).nonzero()[0][numbers]:
        split.images[number].save(folder / f"{name}-{number}.png")


def main(task: str, *names: str) -> None:
    """Write the pictures of a task."""
    source, top = digits(), Path("pictures", task)
    for name in names:
        label = list(source.class_names).index(name)
        write(top / "train" / f"digit_{name}", source.train, label, name, slice(60))
        write(top / "test" / f"digit_{name}", source.test, label, name, slice(20))
        write(Path("new"), source.test, label, name, slice(20, 30))


if __name__ == "__main__":
    main(*sys.argv[1:])
