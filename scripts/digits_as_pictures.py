import sys
from pathlib import Path

from mergestream.data.sources.digits import digits

source = digits()


def write(folder, split, name, numbers):
    """Write some scans of a digit as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    label = source.class_names.index(name)
    for number in (split.labels == label).nonzero()[0][numbers]:
        split.images[number].save(folder / f"{name}-{number}.png")


task, *names = sys.argv[1:]
for name in names:
    write(Path("pictures", task, "train", f"digit_{name}"), source.train, name, slice(60))
    write(Path("pictures", task, "test", f"digit_{name}"), source.test, name, slice(20))
    write(Path("new"), source.test, name, slice(20, 30))
