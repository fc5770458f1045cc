r"""Draw samples from a trained model: a workdir, a sparse file alone, or a model repository.

    python -m sparsejax sample --run runs/digits-rigl-0.75-0
    python -m sparsejax sample --run model.safetensors --count 1000 --seed 1 --png
    python -m sparsejax sample --run hf://OWNER/NAME
    python -m sparsejax sample --run runs/fashion_dit-rigl-0.75-0 --label 9 --guidance 3
    python -m sparsejax sample --run runs/celebahq_ldm-rigl-0.5-0 --steps 100 --eta 1 \
        --first-stage vq-f4.ckpt --output faces --grid --png

Writes samples.npz to --output: `images`, the 8-bit pictures [count, height, width, channels] that
`evaluate` measures with the same seed, count and batch; for drawings also `samples`, their points.
Unless --png or --gif asks for other pictures, grid.png shows them. A model on latents needs the
first stage that it was trained with; without it, samples.npz holds `latents` only.
"""

import argparse
import contextlib
import logging
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from sparsejax import command_line
from sparsejax.errors import ConfigError
from sparsejax.storage import require_writable

if TYPE_CHECKING:
    from sparsejax.training.trained import Run
    from sparsejax.types import NumpyArray, Samples

_BATCH = 256  # as in `evaluate`: the last bits of samples may depend on it
_SHOWN = 256  # number of samples in a grid

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> None:
    """Sample a run.

    Raises:
      ConfigError: --run is no trained model, or can't be sampled with these flags.
    """
    flags = _parser().parse_args(argv)
    # Imported here since they take seconds, which --help and a mistyped flag shouldn't wait for.
    from sparsejax.training.trained import load

    output = pathlib.Path(flags.output or pathlib.Path("samples") / _name(flags.run))
    require_writable(output, "--output")
    run = load(
        flags.run,
        first_stage=flags.first_stage,
        sampler=flags.sampler,
        steps=flags.steps,
        eta=flags.eta,
        clip=flags.clip,
        label=flags.label,
        guidance=flags.guidance,
        guidance_interval=flags.guidance_interval,
        spacing=flags.spacing,
        churn=flags.churn,
    )
    _check_outputs(flags, run)
    for warning in run.model.warnings:
        logger.warning(warning)
    how = ", through the compact network" if run.is_compact else ""
    print(
        f"{flags.run}: {flags.count} samples, {run.model.passes_per_sample} forward passes each"
        f"{how}; the first ones compile",
        flush=True,
    )
    arrays, shown = _draw(run, flags, output)
    written = _write(run, arrays, shown, output, flags)
    print(f"In {output}: {', '.join(written)}")


def _parser() -> command_line.Parser:
    parser = command_line.Parser(__doc__, prog="python -m sparsejax sample")
    count = command_line.count
    parser.add_argument(
        "--run",
        required=True,
        metavar="RUN",
        help="Workdir of a run, a sparse file, or a folder of `export --hub`, also as "
        "hf://OWNER/NAME[@REVISION] on the Hugging Face Hub.",
    )
    parser.add_argument("--count", type=count, default=64, metavar="N", help="Number of samples.")
    parser.add_argument(
        "--seed", type=command_line.seed, default=0, metavar="N", help="Seed of the noise."
    )
    _add_sampling(parser)
    parser.add_argument(
        "--batch",
        type=count,
        default=_BATCH,
        metavar="N",
        help="Samples drawn at once, over all devices.",
    )
    parser.add_argument(
        "--first-stage",
        metavar="PATH",
        help="First stage of a run on latents: a file, a diffusers folder, or the workdir that "
        "trained it (default: config.first_stage.path, if it exists).",
    )
    parser.add_argument(
        "--output",
        metavar="FOLDER",
        help="Folder to write to (default: samples/<name of the run, file or repository>).",
    )
    parser.add_argument(
        "--png", action="store_true", help="Write every picture as png/<index>.png."
    )
    parser.add_argument(
        "--grid",
        action="store_true",
        help=f"Write grid.png with the first {_SHOWN} samples (default: if neither --png "
        "nor --gif is given).",
    )
    parser.add_argument(
        "--gif", action="store_true", help="For drawings, write samples.gif and samples.svg."
    )
    return parser


def _add_sampling(parser: command_line.Parser) -> None:
    """Add the flags that replace keys of `config.sample`."""
    parser.add_argument(
        "--sampler",
        metavar="NAME",
        help="ddim, ddpm or dpmpp_2m, which is DPM-Solver++(2M); euler or heun for flow and edm "
        "(default: config.sample.sampler).",
    )
    parser.add_argument(
        "--steps",
        type=command_line.count,
        metavar="N",
        help="Steps of other samplers than ddpm (default: config.sample.steps).",
    )
    parser.add_argument(
        "--eta",
        type=command_line.number,
        metavar="NUMBER",
        help="Of ddim: from 0 (deterministic) to 1 (default: config.sample.eta).",
    )
    parser.add_argument(
        "--clip",
        type=command_line.number,
        metavar="NUMBER",
        help="Bound of the predicted data (default: config.sample.clip).",
    )
    parser.add_argument(
        "--label",
        type=command_line.index,
        metavar="N",
        help="Label of all samples, from 0, of a network with labels (default: "
        "config.sample.label, or all labels in turn).",
    )
    parser.add_argument(
        "--guidance",
        type=command_line.number,
        metavar="NUMBER",
        help="Weight of classifier-free guidance; 1 is none (default: config.sample.guidance).",
    )
    parser.add_argument(
        "--guidance-interval",
        type=command_line.numbers(float),
        metavar="FROM,TO",
        help="Times in which guidance acts (default: config.sample.guidance_interval).",
    )
    parser.add_argument(
        "--spacing",
        metavar="NAME",
        help="Steps of ddim and dpmpp_2m: leading, trailing or karras (default: "
        "config.sample.spacing).",
    )
    parser.add_argument(
        "--churn",
        type=command_line.number,
        metavar="NUMBER",
        help="Noise that heun adds, of a network of edm (default: config.sample.churn).",
    )


def _name(run: str) -> str:
    path = pathlib.Path(run.partition("@")[0] if run.startswith("hf://") else run)
    return path.stem if path.suffix == ".safetensors" else path.resolve().name


def _check_outputs(flags: argparse.Namespace, run: "Run") -> None:
    if flags.gif and "samples.gif" not in run.model.closing_files:
        raise ConfigError(f"--gif is for drawings; {flags.run} is a run on {run.config.task.name}")
    if not run.decodes:
        wanted = [f"--{name}" for name in ("png", "grid", "gif") if getattr(flags, name)]
        if wanted:
            raise ConfigError(f"{', '.join(wanted)} needs the first stage: {_missing(run)}")
        print(f"latents are saved, not pictures: {_missing(run)}")


def _missing(run: "Run") -> str:
    path = run.config.first_stage.path
    return f"config.first_stage.path is {path!r}, which doesn't exist; set it with --first-stage"


def _draw(
    run: "Run", flags: argparse.Namespace, output: pathlib.Path
) -> "tuple[dict[str, Samples], NumpyArray]":
    """Draw all samples; return the arrays of samples.npz and the samples to show."""
    import numpy as np

    from sparsejax.rendering.images import remove_pngs_from, save_pngs
    from sparsejax.rendering.pixels import to_pixels
    from sparsejax.training.keys import named_key

    model, done = run.model, 0
    names = ["images"] if run.decodes else ["latents"]
    if run.decodes and model.to_images is not to_pixels:  # samples hold more than the pictures
        names.append("samples")
    parts: dict[str, list[NumpyArray]] = {name: [] for name in names}
    shown: list[NumpyArray] = []
    key = named_key(flags.seed, "evaluation")
    with _progress(flags.count) as show:
        for samples in run.sample_batches(key, flags.count, batch=flags.batch):
            _check_finite(flags.run, samples, done)
            made = {"latents": samples, "samples": samples}
            if run.decodes:
                made["images"] = model.to_images(samples)
                shown += list(samples[: max(0, _SHOWN - done)])
                if flags.png:
                    save_pngs(output / "png", made["images"], done)
            for name, arrays in parts.items():
                arrays.append(made[name])
            done += len(samples)
            show(done)
    if flags.png and run.decodes:
        removed = remove_pngs_from(output / "png", done)
        if removed:
            logger.info("%d pictures of earlier samples removed from %s", removed, output / "png")
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}, np.array(shown)


def _check_finite(run: str, samples: "NumpyArray", start: int) -> None:
    from sparsejax.rendering.pixels import are_finite

    bad = [start + i for i, is_finite in enumerate(are_finite(samples)) if not is_finite]
    if bad:
        raise ConfigError(
            f"{run}: {len(bad)} of samples {start} to {start + len(samples) - 1} hold values that "
            f"aren't finite, the first is {bad[0]}; accepted: a run that hasn't diverged, or more "
            "--steps"
        )


@contextlib.contextmanager
def _progress(count: int) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on a terminal; yields `show(done)`."""
    if not sys.stdout.isatty():
        yield lambda done: None
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (BarColumn(bar_width=None), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(TextColumn("sampling"), *columns) as progress:
        bar = progress.add_task("sampling", total=count)
        yield lambda done: progress.update(bar, completed=done)


def _write(
    run: "Run",
    arrays: "dict[str, Samples]",
    shown: "NumpyArray",
    output: pathlib.Path,
    flags: argparse.Namespace,
) -> list[str]:
    """Write all files except single pictures; return the names of everything written."""
    from PIL import Image

    from sparsejax.atomic import replacing, write_npz

    output.mkdir(parents=True, exist_ok=True)
    write_npz(output / "samples.npz", arrays)
    written = ["samples.npz"]
    if run.decodes and (flags.grid or not (flags.png or flags.gif)):
        with replacing(output / "grid.png") as partial:
            Image.fromarray(run.model.render(shown)).save(partial, format="PNG")
        written.append("grid.png")
    if flags.gif:
        run.model.illustrate(shown, output)
        written += ["samples.gif", "samples.svg"]
    return [*written, "png/"] if flags.png else written
