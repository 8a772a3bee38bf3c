"""merge.py checkpoints=[…]: merge checkpoints of any origin into a file."""

from __future__ import annotations

from pathlib import Path

from mergestream.compose.merging import FileMerge
from mergestream.merging.engine import merge_checkpoints
from mergestream.merging.export import export
from mergestream.merging.output import path_of
from mergestream.runs.directory import readable
from mergestream.runtime import files, interrupt
from mergestream.runtime.interrupt import Stopped


def merge_files(settings: FileMerge) -> None:
    """Merge files that this project did not write.

    Raises:
        UserError: if a file is missing, damaged or does not fit the others.
        Stopped: if a signal arrived; nothing of an unfinished merge is kept.
    """
    try:
        _merge_files(settings)
    except Stopped as stopped:
        seconds = 30 if stopped.signum in interrupt.TIME_IS_UP else 1  # SLURM may need longer
        interrupt.leave_threads(stopped.code, seconds)
        raise Stopped(
            stopped.signum,
            f"stopped by {stopped.signum.name}; the unfinished merge was removed. Repeat the command to start again.",
        ) from None


def _merge_files(settings: FileMerge) -> None:
    bound, out = settings.bound, Path(settings.out)
    skipped = merge_checkpoints(
        settings.base,
        settings.checkpoints,
        bound.strategy,
        out,
        scale=settings.scales if settings.several else settings.scales[0],
        dtype=settings.dtype,
        on_mismatch=settings.on_mismatch,
        bn=settings.bn,
        overwrite=settings.overwrite,
        device=settings.device,
        say=print,
        adjustments=bound.adjustments,
        **bound.options,
    )
    for scale in settings.scales:
        path = path_of(out, scale) if settings.several else out
        count = len(settings.checkpoints)
        print(f"merged {count} checkpoints with {bound.strategy.name}, λ = {scale:g}, into {path}")
    if skipped:
        print(f"not merged, copied from the base (on_mismatch=skip): {', '.join(skipped)}")
    if settings.export is not None:
        path = export(settings.inputs.clip(), files.read_tensors(out), settings.export, out.with_suffix(""))
        print(f"exported to {readable(path)}")
