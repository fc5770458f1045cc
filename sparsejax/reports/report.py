"""A report of many runs: report.md with its figures, and report.html, one file."""

import itertools
import json
import os
import pathlib
import re

import numpy as np
from PIL import Image

from sparsejax.errors import ConfigError
from sparsejax.quantities import quantity
from sparsejax.reports import figures, overlap, tables
from sparsejax.reports.documents import (
    Code,
    Folded,
    Items,
    Pictures,
    Plot,
    Section,
    Table,
    Text,
    anchor,
    write_html,
    write_markdown,
)
from sparsejax.reports.sheets import Picture
from sparsejax.storage import require_writable

TITLE = "Sparse and dense training compared"
_REQUIRED = ("run", "method", "sparsity", "seed", "steps", "measures")
_PICTURES = "8-bit"  # what rows say whose samples were clipped and rounded
_HELD_OUT = "held-out loss"
_WIDE = 420  # pixels: wider pictures are made smaller
_BASELINES = {
    "small_dense": "a dense model, narrowed to as many parameters as the sparse one of that S has "
    "active",
    "small_dense_flops": "a dense model, narrowed to the FLOPs of the sparse one of that S",
}
_PLAIN = ([], ["weight"])
_STRUCTURES = (
    "**structure**: what is pruned and grown as one: `weight`, single weights; `block N`, blocks "
    "of N x N input and output channels; `channel`, whole channels."
)
_MARK = "A mark is the mean over seeds, its bar one standard deviation, a faint dot one run."
_METRICS = {
    "FD": "the Frechet distance between Gaussians fitted to the features of samples and of real "
    "examples",
    "FID": "the Frechet Inception distance",
    "KID": "an unbiased estimate of the squared kernel distance between both sets of features, "
    "which can be negative",
    "precision": "the share of samples that lie among the real examples in feature space",
    "recall": "the share of real examples that lie among the samples in feature space",
    "IS": "the Inception Score's formula on the extractor's classes",
    _HELD_OUT: "the mean loss over examples kept from training, with diffusion times and noise "
    "that are the same for every run",
    "W1": "the Wasserstein distance between samples and real examples of the one quantity in "
    "brackets",
}
_EXTRACTORS = {
    "classifier": "in the features of a small classifier that this project trains on the data's "
    "own labels. Such a distance is no FID and compares with nothing but itself",
    "pixels": "of raw pixels, without any network. Such a distance is no FID either",
    "inception": "in the features of the network of the published FID",
}


def read_results(path):
    """Read the lines of a results file; of a run that is there twice the last one counts.

    Args:
      path: a .jsonl file, or a folder that holds results.jsonl.

    Returns:
      List of dictionaries.

    Raises:
      ConfigError: no such file, a damaged line, a line without a key that is needed, or no line.
    """
    path = pathlib.Path(path)
    file = path / "results.jsonl" if os.path.isdir(path) else path
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"results {str(path)!r} can't be read: {error}") from error
    rows = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{file}, line {number}: no JSON ({error})") from error
        missing = [key for key in _REQUIRED if not isinstance(row, dict) or key not in row]
        if missing:
            raise ConfigError(f"{file}, line {number}: no {', '.join(missing)}")
        rows[row["run"]] = row
    if not rows:
        raise ConfigError(f"{file} holds no runs")
    return list(rows.values())


def write_report(output, rows, *, runs=None, title=TITLE, note=""):
    """Write report.md, the figures beside it, and report.html, which needs no other file.

    Args:
      output: folder, created if need be.
      rows: lines of results.jsonl.
      runs: folder of the runs' workdirs; what is missing there is left out of the report.
      title: of the report.
      note: free text for its first section.

    Returns:
      Paths of report.md and report.html.

    Raises:
      ConfigError: there are no rows.
    """
    if not rows:
        raise ConfigError("no runs to report")
    output = pathlib.Path(output)
    require_writable(output, "--output")
    output.mkdir(parents=True, exist_ok=True)
    sections = _sections(rows, runs and pathlib.Path(runs), note, output)
    markdown, page = output / "report.md", output / "report.html"
    write_markdown(markdown, title, sections)
    write_html(page, title, sections)
    return markdown, page


# What the report says: each section, or None, with what to say of what is missing.


def _sections(rows, runs, note, output):
    groups = tables.group_rows(rows)
    measures = tables.measure_names(rows)
    parts = [
        _cost_section(rows, groups, measures),
        _pareto_section(rows, groups, measures),
        _effects_section(rows, groups, measures),
        _layers_section(rows),
        _explored_section(rows),
        _overlap_section(groups, runs),
        _samples_section(groups, measures, runs),
        (_runs_section(groups, rows), ""),
        (_repeat_section(rows, output), ""),
    ]
    sections, missing = zip(*parts, strict=True)
    opening = _opening(rows, groups, measures, note, list(filter(None, missing)))
    return [Section("", opening), *filter(None, sections)]


def _opening(rows, groups, measures, note, left_out):
    seeds = sorted({row["seed"] for row in rows})
    counts = sorted({int(found) for name in measures for found in re.findall(r"@(\d+)$", name)})
    facts = [
        f"**{_count(len(rows), 'run')}** of {_count(len(groups), 'setting')}, "
        f"{_count(len(seeds), 'seed')} ({_join(seeds)})",
        f"reference: {_known(rows, 'reference')}",
        f"structure: {_join(kinds)}" if (kinds := tables.structures(groups)) not in _PLAIN else "",
        f"samples a run: {_join(f'{count:,}' for count in counts)}" if counts else "",
        f"device: {_known(rows, 'device')}",
        f"versions: {_versions(rows)}",
        f"commit: {_commits(rows)}",
        f"dates: {_dates(rows)}",
        f"wall time of all runs: {_duration(rows)}" if tables.numbers(rows, "seconds") else "",
    ]
    blocks = [Text("; ".join(filter(None, facts)) + ".")]
    if note:
        blocks.append(Text(" ".join(note.split())))
    blocks += [Text(text) for text in _warnings(rows)]
    meanings = _meanings(rows, groups, measures)
    blocks += [Items(meanings)] if meanings else []
    if left_out:
        blocks.append(Text(f"Left out, for want of data: {'; '.join(left_out)}."))
    return blocks


def _count(count, noun):
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _join(values):
    return ", ".join(map(str, values))


def _known(rows, key):
    values = dict.fromkeys(_portable(row[key]) for row in rows if row.get(key))
    return " / ".join(map(str, values)) or "not recorded"


def _versions(rows):
    versions = {}
    for row in rows:
        for name, version in (row.get("versions") or {}).items():
            versions.setdefault(name, {})[version] = None
    return _join(f"{name} {' and '.join(map(str, v))}" for name, v in versions.items()) or (
        "not recorded"
    )


def _commits(rows):
    values = dict.fromkeys(row.get("commit") for row in rows)
    return _join(f"`{value}`" if value else "not recorded" for value in values)


def _dates(rows):
    days = sorted({str(row["date"])[:10] for row in rows if row.get("date")})
    if not days:
        return "not recorded"
    return days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"


def _duration(rows):
    seconds = sum(tables.numbers(rows, "seconds"))
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _warnings(rows):
    """Say what makes runs of one file hard to compare."""
    found = []
    floats = [row for row in rows if _measured_on(row) != _PICTURES]
    if floats:
        some = "" if len(floats) == len(rows) else f", {len(floats)} of the {len(rows)} runs"
        found.append(
            f"**Measured before samples were clipped and rounded to {_PICTURES} pictures, as they "
            f"are now{some}:** distances in features are of floats and don't compare exactly with "
            "newer ones."
        )
    if len({str(row.get("reference")) for row in rows}) > 1:
        found.append("**The runs were measured against different reference sets.**")
    if len({row.get("device") for row in rows}) > 1:
        found.append("The runs were made on different devices: their times don't compare.")
    if len({row.get("commit") for row in rows}) > 1:
        found.append("The runs were made at different commits.")
    if any(str(row.get("commit")).endswith("-dirty") for row in rows):
        found.append("`-dirty` marks runs of a checkout with changes that weren't committed.")
    bad = {
        row["run"]
        for row in rows
        for value in row["measures"].values()
        if not tables.is_number(value)
    }
    if bad:
        found.append(
            f"Measures that are no finite number, of {_count(len(bad), 'run')}, are left out of "
            "means: the number of values then stands beside the mean."
        )
    return [" ".join(found)] if found else []


def _measured_on(row):
    """Return what the features of a row are of: rows that don't say it are of unrounded floats."""
    # Inception has always rounded, and other measures are of no pictures.
    of_pictures = any(re.search(r"\[(classifier|pixels)", name) for name in row["measures"])
    return row.get("pictures", "floats" if of_pictures else _PICTURES)


def _meanings(rows, groups, measures):
    """Say what the names in the tables mean."""
    metrics = dict.fromkeys(map(tables.metric_of, measures))
    texts = [f"**{name}**: {_METRICS[name]}." for name in metrics if name in _METRICS]
    inside = dict.fromkeys(
        match[1] for name in measures if (match := re.search(r"\[([^\]:]+)(:[^\]]*)?\]", name))
    )
    names = [name for name in inside if name in _EXTRACTORS]
    if names:
        texts += [f"`[{name}]`: {_EXTRACTORS[name]}." for name in names]
        texts.append(
            "After @ stands the sample count: distances depend on it. Where the reference is the "
            "training data, they don't tell a model that generalises from one that memorises."
        )
    texts += [_STRUCTURES] if tables.structures(groups) not in _PLAIN else []
    methods = {row["method"] for row in rows}
    texts += [f"`{name}`: {meaning}." for name, meaning in _BASELINES.items() if name in methods]
    return texts


def _settings(groups):
    """Return the columns that name a group: `{heading: group -> text}`."""
    columns = {"method": lambda group: group.method}
    if len(tables.structures(groups)) > 1:
        columns["structure"] = lambda group: group.structure if tables.is_sparse(group) else "–"
    columns |= {
        "S": lambda group: f"{group.sparsity:g}",
        "p": lambda group: _or_dash(group.drop_fraction),
        "dT": lambda group: _or_dash(group.update_interval),
    }
    if len({group.steps for group in groups}) > 1:
        columns["steps"] = lambda group: f"{group.steps:,}"
    return columns | {"seeds": lambda group: str(len(group.rows))}


def _or_dash(value):
    return "–" if value is None else f"{value:g}"


def _table(caption, groups, columns):
    """Return the table of columns `{heading: group -> text}` with a row a group."""
    body = [[cell(group) for cell in columns.values()] for group in groups]
    levels = [group.sparsity for group in groups]
    breaks = tuple(i for i in range(1, len(levels)) if levels[i] != levels[i - 1])
    return Table(caption, list(columns), body, 1, breaks)


def _cost_section(rows, groups, measures):
    columns = _settings(groups) | {
        "active parameters": _counted("active_parameters"),
        "FLOPs, forward": _counted("forward_flops"),
        "FLOPs, training (formula)": _counted("training_flops_formula"),
        "FLOPs, training (this run)": _counted("training_flops_run"),
    }
    differences = _differences(groups, measures[0]) if measures else {}
    for name in measures:
        columns[_headed(name)] = _measured(groups, name, best=True)
        if name == measures[0] and differences:
            heading = f"{tables.metric_of(name)}, difference to dense"
            columns[heading] = _difference_cell(groups, differences, _digits(groups, name))
    quality = _table(
        "Mean ± standard deviation over seeds. ↓ lower is better, ↑ higher is better; bold: the "
        "best mean of a column. S: share of zeros among the weights that can be sparse; p: drop "
        "fraction; dT: steps between topology updates. FLOPs are counted on paper, two a "
        "multiply-add times density; training FLOPs are of the whole run, by the paper's formula "
        "and by the updates that the run made.",
        groups,
        columns,
    )
    seconds = {"step_seconds": "ms a step", "sampling_seconds": "ms a sample"}
    measured = _settings(groups) | {"FLOPs, one sample": _counted("sampling_flops")}
    measured |= {
        heading: _measured(groups, key, scale=1e3)
        for key, heading in seconds.items()
        if tables.numbers(rows, key)
    }
    if any(tables.numbers(rows, "peak_memory_bytes")):
        measured["peak memory"] = _counted("peak_memory_bytes", "B")
    measured["training loss, at the end"] = _measured(groups, "loss")
    only = tables.structures(groups) in _PLAIN
    layers = "Sparse layers" if only else "Layers whose single weights are sparse"
    times = _table(
        f"Measured, mean ± standard deviation over seeds. {layers} are computed as dense ones "
        "with zeros, so time and memory don't show what the FLOPs say. Peak memory is of the "
        "process or device that trained.",
        groups,
        measured,
    )
    blocks = [quality, *map(Text, _reading(groups, measures, differences)), times]
    return Section("Quality and cost", blocks), ""


def _difference_cell(groups, differences, digits):
    return lambda group: tables.write_difference(differences.get(groups.index(group)), digits)


def _headed(measure):
    return f"{measure} {'↑' if tables.higher_is_better(measure) else '↓'}"


def _counted(key, unit=""):
    def cell(group):
        values = tables.numbers(group.rows, key)
        return quantity(float(np.mean(values))) + unit if any(values) else "–"

    return cell


def _spreads(groups, name, scale=1):
    values = ([scale * value for value in tables.numbers(g.rows, name)] for g in groups)
    return [tables.spread(found) for found in values]


def _digits(groups, name, scale=1):
    return tables.decimals(_spreads(groups, name, scale))


def _measured(groups, name, *, scale=1, best=False):
    """Return the cell of a column of means and standard deviations, the best mean bold."""
    digits = _digits(groups, name, scale)
    means = [one.mean for one in _spreads(groups, name, scale) if one]
    pick = max if tables.higher_is_better(name) else min

    def cell(group):
        one = _spreads([group], name, scale)[0]
        text = tables.write_spread(one, digits, len(group.rows))
        is_best = best and len(means) > 1 and one and one.mean == pick(means)
        return f"**{text}**" if is_best else text

    return cell


def _differences(groups, measure):
    """Compare groups with the dense one of as many steps: `{index of the group: Difference}`.

    Where there are dense ones of several sizes, a sparse model is compared with its own, and a
    small dense one with none.
    """
    found = {}
    for index, group in enumerate(groups):
        dense = [g for g in groups if g.method == "dense" and g.steps == group.steps]
        same = [g for g in dense if _size(g) == _size(group)]
        baseline = same if len(dense) > 1 else dense
        if baseline and group.method != "dense":
            both = (tables.by_seed(g.rows, measure) for g in (group, baseline[0]))
            found[index] = tables.difference(*both)
    return found


def _size(group):
    return group.rows[0].get("parameters")


def _reading(groups, measures, differences):
    """Say in words how far the differences to dense can be trusted."""
    known = {key: one for key, one in differences.items() if one}
    if not known:
        return []
    tested = {key: one for key, one in known.items() if one.low is not None}
    if not tested:
        return ["With one seed a setting there is no telling a difference from noise."]
    clear = [key for key, one in tested.items() if one.excludes_zero]
    text = (
        f"Difference to dense: of `{measures[0]}`, run by run of the same seed, its mean with "
        f"Student's 95 % interval in brackets. {len(clear)} of {len(tested)} intervals exclude "
        "zero; each is for itself, none corrected for their number. An interval that contains "
        "zero shows no difference, and doesn't show that there is none."
    )
    if min(len(group.rows) for group in groups) < 5:
        text += " With so few seeds a setting, standard deviations are rough numbers."
    return [text]


def _pareto_section(rows, groups, measures):
    chosen = measures[:1] + [name for name in measures[1:] if name == _HELD_OUT]
    blocks = []
    for measure, (cost, words) in itertools.product(chosen, figures.COSTS.items()):
        figure = figures.pareto(rows, measure, cost)
        if figure:
            caption = [f"`{measure}` (vertical) against {words} (horizontal).", _MARK]
            if len(groups) > 1:
                caption.append("Settings of nearly one cost are drawn side by side.")
            if figures.joins_levels(groups):
                caption.append("Thin lines join the levels of one setting.")
            if any(group.method == "dense" for group in groups):
                caption.append("The horizontal line and band: dense, ± one standard deviation.")
            blocks.append(
                Plot(f"{anchor(measure.split('@')[0])}-{anchor(cost)}", figure, " ".join(caption))
            )
    if not blocks:
        return None, "quality against cost (no run has a finite measure of quality)"
    return Section("Quality against cost", blocks), ""


def _effects_section(rows, groups, measures):
    words = {"drop_fraction": "drop fraction", "update_interval": "update interval"}
    blocks = []
    for setting, measure in itertools.product(words, measures[:1]):
        figure = figures.effect(rows, measure, setting)
        if not figure:
            continue
        caption = (
            f"`{measure}` (vertical) against the {words[setting]} (horizontal), a panel a method. "
            f"{_MARK}"
        )
        if setting == "drop_fraction" and any(group.method == "static" for group in groups):
            caption += " Hollow marks at p = 0 are the static model of the same S."
        blocks.append(Plot(f"{anchor(measure.split('@')[0])}-{anchor(setting)}", figure, caption))
        blocks.append(_effect_table(rows, groups, measure, setting, words[setting]))
    if not blocks:
        return None, (
            "the effect of drop fraction and update interval (no method has two values of either, "
            "all else equal)"
        )
    return Section("Drop fraction and update interval", blocks), ""


def _effect_table(rows, groups, measure, setting, words):
    lines = figures.effect_lines(rows, measure, setting)
    sign, other = ("p", "dT") if setting == "drop_fraction" else ("dT", "p")
    columns = _settings(groups)
    named = {
        key: columns[key] for key in ("method", "structure", "S", other, "steps") if key in columns
    }
    places = sorted({getattr(group, setting) for line in lines for group in line})
    digits = _digits(groups, measure)
    body = []
    for line in lines:
        cells = {getattr(group, setting): tables.by_seed(group.rows, measure) for group in line}
        spreads = [tables.spread(list(cells.get(place, {}).values())) for place in places]
        change = tables.difference(cells[max(cells)], cells[min(cells)])
        body.append(
            [cell(line[0]) for cell in named.values()]
            + [tables.write_spread(one, digits) for one in spreads]
            + [tables.write_difference(change, digits)]
        )
    header = [*named, *(f"{sign} = {place:g}" for place in places), "largest less smallest"]
    caption = (
        f"`{_headed(measure)}` by {words}, mean ± standard deviation over seeds; the difference "
        "of the largest and the smallest, seed by seed, with Student's 95 % interval."
    )
    return Table(caption, header, body)


def _layers_section(rows):
    figure = figures.layer_densities(rows)
    if not figure:
        return None, "the density of each layer (no sparse run lists its layers)"
    caption = (
        "Density of each layer (vertical, in the order of execution) at each sparsity "
        "(horizontal), mean over the runs of that sparsity; numbers in cells are the density "
        "without its leading zero. Yellow layers are dense."
    )
    return Section("Density of each layer", [Plot("layers", figure, caption)]), ""


def _explored_section(rows):
    figure = figures.ever_active(rows)
    if not figure:
        return None, "weights that were ever active (no sparse run tells)"
    text = (
        "In-time over-parameterisation: which weights training has tried, whether they are active "
        "at the end or not. Both shares are of the layers that are sparse."
    )
    caption = (
        "Share of weights (horizontal) that are active at any one time, and that were active at "
        "some time, by method and settings (vertical); bars are one standard deviation over seeds."
    )
    plot = Plot("ever-active", figure, caption)
    return Section("Weights that were ever active", [Text(text), plot]), ""


def _overlap_section(groups, runs):
    entries, problems, missing = [], [], 0
    for group in filter(tables.is_sparse, groups):
        rows = [row for row in group.rows if figures.sparse_density(row)]
        masks = [_masks(runs, row, problems) for row in rows]
        missing += masks.count(None)
        read = [(row, one) for row, one in zip(rows, masks, strict=True) if one]
        if len(read) > 1:
            try:
                layers = read[0][0]["layers"]
                entries.append((group, overlap.overlap_of_runs([one for _, one in read], layers)))
            except ValueError as error:
                problems.append(f"{read[0][0]['run']}: {error}")
    if not entries:
        why = "no setting has the masks of two seeds"
        return None, f"overlap of masks between seeds ({_because(why, problems)})"
    said = f"masks of {_count(missing, 'sparse run')} ({_because('not there', problems)})"
    named = _settings(groups)
    del named["seeds"]
    body = [
        [cell(group) for cell in named.values()]
        + [str(found.masks), str(found.pairs), f"{found.mean:.4f}"]
        + [f"{found.low:.4f} to {found.high:.4f}", f"{found.chance:.4f}"]
        + [f"{found.mean / found.chance:.2f}"]
        for group, found in entries
    ]
    header = [*named, "seeds", "pairs", "overlap, mean", "range over pairs", "by chance", "ratio"]
    text = (
        "The overlap of two runs A and B is |A and B| / |A|: of the active weights of all sparse "
        "layers, the share that is active in both. Masks that are drawn independently, with a of "
        "the n weights of a layer active, share sum(a² / n) / sum(a) on average. Static masks "
        "of different seeds are drawn so: their ratio to chance is a check."
    )
    caption = (
        "Overlap of masks (horizontal) between the seeds of a setting (vertical): mean and range "
        "over pairs of seeds; the tick is what chance gives."
    )
    blocks = [
        Text(text),
        Plot("overlap", figures.overlaps(entries), caption),
        Table("Overlap of the masks of different seeds, at the end of training.", header, body),
    ]
    return Section("Overlap of masks between seeds", blocks), said if missing else ""


def _masks(runs, row, problems):
    """Return the masks of a run, or None; what is wrong with them is appended to `problems`."""
    try:
        folder = runs and runs / row["run"] / "evaluation"
        return folder and overlap.read_masks(folder / "masks.npz", row["layers"])
    except OSError:
        return None
    except ValueError as error:
        problems.append(f"{row['run']}: {error}")
        return None


def _because(text, problems):
    return f"{text}; {problems[0]}" if problems else text


def _samples_section(groups, measures, runs):
    pictures, missing, real = [], 0, None
    for group in groups:
        found = None
        for row in group.rows if runs else []:
            folder = runs / row["run"] / "evaluation"
            found = found or _picture(folder / "samples.png", _picture_title(group, measures, row))
            real = real or _picture(folder / "real.png", "real examples")
        pictures += [found] if found else []
        missing += found is None
    if not pictures:
        return None, "pictures of samples (none were found)"
    pictures = [real, *pictures] if real else pictures
    caption = (
        "Samples of the first seed of each setting, all from the same noise"
        + (", beside real examples" if real else "")
        + ". Not chosen: the first ones drawn."
    )
    said = f"pictures of samples of {_count(missing, 'setting')}" if missing else ""
    return Section("Samples", [Pictures("samples", pictures, caption)]), said


def _picture(path, title):
    try:
        with Image.open(path) as image:
            image = image.convert("RGB")
            if image.width > _WIDE:
                height = max(1, round(image.height * _WIDE / image.width))
                image = image.resize((_WIDE, height), Image.Resampling.LANCZOS)
            return Picture(title, np.asarray(image))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def _picture_title(group, measures, row):
    is_plain = group.structure == "weight" or not tables.is_sparse(group)
    parts = [] if is_plain else [group.structure]
    parts += [f"S {group.sparsity:g}"] if group.sparsity else []
    parts += [f"p {group.drop_fraction:g}"] if group.drop_fraction is not None else []
    parts += [f"dT {group.update_interval:g}"] if group.update_interval is not None else []
    last = f"seed {row['seed']}"
    if measures and tables.numbers([row], measures[0]):
        digits = _digits([group], measures[0])
        last += f": {tables.metric_of(measures[0])} {_one(row, measures[0], f',.{digits}f')}"
    return "\n".join(filter(None, [group.method, ", ".join(parts), last]))


def _runs_section(groups, rows):
    names = tables.measure_names(rows, spreads=True)
    digits = {name: _digits(groups, name) for name in names}
    is_mixed = len(set(map(_measured_on, rows))) > 1
    body, breaks = [], []
    for group in groups:
        breaks += [len(body)] if body else []
        for row in group.rows:
            cells = [_one(row, name, f",.{digits[name]}f") for name in names]
            cells += [_one(row, "loss", ".4g"), _one(row, "seconds", ".0f")]
            cells += [_measured_on(row)] if is_mixed else []
            body.append([f"`{_uncoded(row['run'])}`", str(row["seed"]), *cells])
    header = ["run", "seed", *names, "training loss", "seconds in all"]
    header += ["samples measured as"] if is_mixed else []
    table = Table("Every run of the results file.", header, body, 1, tuple(breaks))
    return Section("Every run", [Folded(f"All {_count(len(rows), 'run')}", [table])])


def _one(row, key, form):
    values = tables.numbers([row], key)
    return format(values[0], form) if values else "–"


def _uncoded(text):
    return str(text).replace("`", "'")


def _repeat_section(rows, output):
    text = (
        "Each line of `results.jsonl` holds one run: costs, measures, the whole config, the "
        "commit and the versions. `python train.py` with that config repeats the training, "
        "`python evaluate.py --workdirs` the measures, and "
        "`python -m sparsejax report --results results.jsonl` writes this report. "
        "Folders in configs are shortened to their last part."
    )
    if (output / "results.jsonl").exists():
        text += " The file lies beside this report."
    blocks = [Text(text)]
    configs = [_flat(row.get("config") or {}) for row in rows]
    names = dict.fromkeys(key for config in configs for key in config)
    varied = []
    for name in names:
        values = dict.fromkeys(json.dumps(config.get(name), default=str) for config in configs)
        if len(values) > 1:
            more = f", ... {len(values)} values" if len(values) > 8 else ""
            varied.append([f"`{_uncoded(name)}`", _join(list(values)[:8]) + more])
    if varied:
        caption = "Config keys that differ between runs; all others are the same in all of them."
        blocks.append(Table(caption, ["key", "values"], varied, 2))
    if rows[0].get("config"):
        config = _portable(rows[0]["config"])
        config = json.dumps(config, indent=2, ensure_ascii=False, default=str)
        folded = Folded(f"Config of `{_uncoded(rows[0]['run'])}`", [Code(config, "json")])
        blocks.append(folded)
    return Section("To repeat this", blocks)


def _flat(config, prefix=""):
    found = {}
    for key, value in config.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = _portable(value)
    return found


def _portable(value):
    """Shorten absolute paths, which mean nothing on another machine."""
    if isinstance(value, dict):
        return {key: _portable(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_portable(part) for part in value]
    if isinstance(value, str) and re.match(r"(/|~|[A-Za-z]:\\)", value):
        return ".../" + re.split(r"[/\\]", value.rstrip("/\\"))[-1]
    return value
