"""Pictures of samples, one per setting, beside real examples."""

import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from sparsejax.limits import check_limit
from sparsejax.quantities import counted
from sparsejax.reports.documents import Part, Pictures, Section
from sparsejax.reports.groups import Comparison, Group
from sparsejax.reports.results import Run, metric_of
from sparsejax.reports.sheets import Picture
from sparsejax.reports.spreads import decimals

_WIDE = 420  # pixels: wider pictures are made smaller


def samples_section(comparison: Comparison, folder: pathlib.Path | None) -> Part:
    """Write the section of a report.

    Args:
      comparison: the runs.
      folder: of their workdirs, where the pictures are.
    """
    pictures: list[Picture] = []
    missing, real = 0, None
    for group in comparison.groups:
        found = None
        for run in group.runs:
            if not folder:
                break
            place = folder / run.name / "evaluation"
            title = _title(group, comparison.measures[:1], run)
            found = found or _picture(place / "samples.png", title)
            real = real or _picture(place / "real.png", "real examples")
        pictures += [found] if found else []
        missing += found is None
    if not pictures:
        return None, "pictures of samples (none were found)"
    pictures = [real, *pictures] if real else pictures
    caption = (
        "Samples of the first seed of each setting, all from the same noise"
        + (", beside real examples" if real else "")
        + ". Not selected: the first ones drawn."
    )
    said = f"pictures of samples of {counted(missing, 'setting')}" if missing else ""
    return Section("Samples", [Pictures("samples", pictures, caption)]), said


def _picture(path: pathlib.Path, title: str) -> Picture | None:
    try:
        with Image.open(path) as file:
            check_limit("image_pixels", file.width * file.height, "pixels")
            image = file.convert("RGB")
            if image.width > _WIDE:
                height = max(1, round(image.height * _WIDE / image.width))
                image = image.resize((_WIDE, height), Image.Resampling.LANCZOS)
            return Picture(title, np.asarray(image))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def _title(group: Group, measures: Sequence[str], run: Run) -> str:
    """Write method, setting and seed, with the first measure if the run has it."""
    is_plain = group.structure == "weight" or not group.is_sparse
    parts = [] if is_plain else [group.structure]
    parts += [f"S {group.sparsity:g}"] if group.sparsity else []
    parts += [f"p {group.drop_fraction:g}"] if group.drop_fraction is not None else []
    parts += [f"dT {group.update_interval:g}"] if group.update_interval is not None else []
    last = f"seed {run.seed}"
    for measure in measures:
        if measure in run.numbers:
            digits = decimals([group.spreads[measure]])
            last += f": {metric_of(measure)} {run.numbers[measure]:,.{digits}f}"
    return "\n".join(filter(None, [group.method, ", ".join(parts), last]))
