"""What a sweep would do: which of its jobs are finished, and what the others may cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergestream.cli.listed import counted


@dataclass(frozen=True)
class Look:
    """What is known of a job before it runs.

    Args:
        seconds: how long it took, if it is finished; None if it is not.
        kind: what decides most of its cost, such as dataset, model and method.
    """

    seconds: float | None
    kind: tuple[Any, ...]


def show(jobs: Mapping[int, Sequence[str]], looks: Mapping[int, Look | str], asked: str, gpus: int) -> None:
    """Print a line for each job, and what all of them may cost.

    Args:
        jobs: the overrides of each job, by number.
        looks: what is known of each; a text is the error that it would end with.
        asked: what each job asks for.
        gpus: of each job.
    """
    measured: dict[tuple[Any, ...], list[float]] = {}
    for look in looks.values():
        if isinstance(look, Look) and look.seconds is not None:
            measured.setdefault(look.kind, []).append(look.seconds)
    total, unknown, waiting = 0.0, 0, 0
    for number, words in jobs.items():
        look = looks[number]
        if isinstance(look, str):
            state = f"error: {look}"
        elif look.seconds is not None:
            state = "finished"
        else:
            similar, waiting = measured.get(look.kind), waiting + 1
            mean = sum(similar) / len(similar) if similar else None
            total, unknown = total + (mean or 0.0), unknown + (mean is None)
            state = "to run, cost unknown" if mean is None else f"to run, about {_duration(mean)}"
        print(f"job {number}: {state}: {' '.join(words)}")
    kind = "GPU hours" if gpus else "hours"
    cost = f"about {total / 3600 * max(gpus, 1):.1f} {kind}" if waiting > unknown else "unknown cost"
    rest = f"; {unknown} more of unknown cost, since none like them has finished" if 0 < unknown < waiting else ""
    print(f"{counted(len(jobs), 'job')}, {waiting} to run: {cost}{rest}. {asked}")


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )
