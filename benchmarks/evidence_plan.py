"""The plan of docs/evidence.md, as data: which runs, in which order, and how they are measured.

A study is a set of runs that differ by method, sparsity and seed only. Seeds are outermost in each
study, so that what is there when the time is over has equal numbers of seeds.
"""

from typing import Any, NamedTuple

SPARSE = ("static", "rigl", "magran")
RATES = (1e-3, 2e-3, 4e-3)  # learning rates that are tried with dense
RATE_SEED = 100  # of these runs, so that no run of a comparison was chosen by its result
SAMPLINGS = (1, 2, 3, 4)  # further seeds of the sampling noise
LEVELS = (0.25, 0.5, 0.75)
METRICS = ("fd", "kid", "precision_recall", "nearest")


class DataSet(NamedTuple):
    """What the runs on a data set share.

    Attributes:
      config: config file and its argument.
      source: file of `--data` that holds the images or drawings; empty if none is needed.
      samples: number of samples that are measured.
      minutes: that a run is expected to take on one core until one has been timed.
      rates: name of the data set whose learning rate is used; its own by default.
      changes: of config keys, by name.
    """

    config: str
    source: str
    samples: int
    minutes: float
    rates: str = ""
    changes: dict[str, Any] = {}


DATA_SETS = {
    "digits": DataSet("configs/digits.py:evidence", "", 1000, 3.5),
    "fashion": DataSet("configs/fashion.py", "fashion_mnist.npz", 2000, 8.5),
    "vmnist_like": DataSet(
        "configs/vmnist_chirodiff.py:like,evidence", "vmnist_like.npz", 1000, 4.8
    ),
    "quickdraw": DataSet(
        "configs/quickdraw_chirodiff.py:evidence", "quickdraw_eye_mouth.npz", 1000, 9.5
    ),
    "kanji": DataSet(
        "configs/kanjivg_chirodiff.py:evidence", "kanjivg_abs.npz", 1000, 28, rates="quickdraw"
    ),
    # Nine times the parameters, four times the images: for an accelerator.
    "digits-large": DataSet(
        "configs/digits.py:evidence",
        "",
        1000,
        3,
        changes={"model.model_channels": 96, "batch_size": 128},
    ),
    "fashion-large": DataSet(
        "configs/fashion.py",
        "fashion_mnist.npz",
        2000,
        5,
        changes={"model.model_channels": 48, "batch_size": 128, "task.image_size": 28},
    ),
}


class Study(NamedTuple):
    """Runs that differ by method, sparsity and seed only.

    Attributes:
      name: of the study, the first part of its runs' names.
      data: name of its data set.
      question: `rate`, `main`, `real`, `samples`, `fraction`, or the factor that is changed.
      cells: pairs of method and sparsity.
      seeds: of the runs; of the sampling noise in `samples`, of the draw in `real`.
      changes: of config keys, by name, besides those of the data set.
    """

    name: str
    data: str
    question: str
    cells: tuple[tuple[str, float], ...]
    seeds: tuple[int, ...]
    changes: dict[str, Any] = {}


class Entry(NamedTuple):
    """A run of a study."""

    study: Study
    method: str
    level: float
    seed: int

    @property
    def name(self):
        """Name of its row."""
        level = [f"{self.level:g}"] if self.level else []
        return "-".join([self.study.name, self.method, *level, str(self.seed)])


def entries_of(studies):
    """Return the runs of studies, in order."""
    return [
        Entry(study, method, level, seed)
        for study in studies
        for seed in study.seeds
        for method, level in study.cells
    ]


def cells(levels, methods=("small_dense", *SPARSE), dense=True):
    """Return pairs of method and sparsity: dense, then by sparsity."""
    first = [("dense", 0.0)] if dense else []
    return tuple(first + [(method, level) for level in levels for method in methods])


def tuning(data):
    """Return the studies that choose the learning rate: dense, one seed."""
    return [
        Study(
            f"{data}-rate-{rate:g}",
            data,
            "rate",
            (("dense", 0.0),),
            (RATE_SEED,),
            {"optimizer.learning_rate": rate},
        )
        for rate in RATES
    ]


def comparison(data, levels, seeds):
    """Return the studies of a data set: the comparison, and the noise of its measures."""
    dense = (("dense", 0.0),)
    return [
        Study(data, data, "main", cells(levels), seeds),
        Study(f"{data}-real", data, "real", (("real", 0.0),), (0,)),
        Study(f"{data}-samples", data, "samples", dense, SAMPLINGS),
    ]


def fractions(data, splits, levels, seeds):
    """Return the studies with fewer training images, the same number of steps."""
    return [
        Study(
            f"{data}-{percent}percent",
            data,
            "fraction",
            cells(levels),
            seeds,
            {"task.split": split, "task.labelled_split": "train"},
        )
        for percent, split in splits.items()
    ]


def factors(data, level, seeds):
    """Return the studies that change one setting of the dynamic methods."""

    def study(name, key, value, methods=("rigl", "magran")):
        chosen = cells((level,), methods, dense=False)
        return Study(
            f"{data}-{name}-{value}", data, name, chosen, seeds, {f"sparsity.{key}": value}
        )

    found = [study("interval", "update_interval", value) for value in (25, 100, 200)]
    found += [study("drop", "drop_fraction", value) for value in (0.05, 0.3)]
    found += [study("batches", "gradient_batches", value, ("rigl",)) for value in (4, 16)]
    return [*found, study("distribution", "distribution", "uniform", SPARSE)]


THREE = (0, 1, 2)
PLAN = [
    *tuning("digits"),
    *comparison("digits", LEVELS, (0, 1, 2, 3, 4)),
    *tuning("fashion"),
    *comparison("fashion", LEVELS, THREE),
    *fractions("digits", {10: "train[:120]", 30: "train[:360]"}, (0.5, 0.75), THREE),
    *fractions("fashion", {10: "train[:10%]", 30: "train[:30%]"}, (0.5,), THREE),
    *tuning("vmnist_like"),
    *comparison("vmnist_like", LEVELS, THREE),
    *tuning("quickdraw"),
    *comparison("quickdraw", (0.5,), THREE),
    *factors("digits", 0.75, THREE),
    *comparison("kanji", (0.5,), THREE),
]
LARGE = [
    study
    for data in ("digits-large", "fashion-large")
    for study in (*tuning(data), *comparison(data, LEVELS, THREE))
]
