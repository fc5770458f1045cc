"""Stands where `python` stood in a documented command: runs the same command, made tiny.

    python documented.py LOG train.py --config configs/digits.py:static,0.9

finds the flags to append in `TINY`, or the reason not to run the command in `NOT_RUN`, appends
a line to the file LOG, and exits with the command's own status; with 2 where a command stands in
neither.
"""

import json
import pathlib
import re
import subprocess
import sys
import time

SCHEDULE = """--config.steps=4 --config.batch_size=4 --config.optimizer.warmup_steps=1
--config.sparsity.update_interval=1 --config.checkpoint.every=2 --config.log.every=2
--config.log.tensorboard=False --config.sample.every=0 --config.sample.count=4
--config.sample.steps=3"""
UNET = """--config.model.model_channels=32 --config.model.num_res_blocks=1
--config.model.channel_mult=(1,) --config.model.attention_resolutions=()"""
DIT = "--config.model.hidden_size=16 --config.model.depth=1 --config.model.num_heads=2"
GRU = """--config.model.layers=1 --config.model.hidden=16 --config.diffusion.steps=21
--config.sample.steps=20 --config.task.buckets=2"""
CODES = """--config.model.channels=8 --config.model.channel_mult=(1,2) --config.model.codes=16
--config.model.norm_groups=4"""
# Photos of a size that the small first stage takes, and that first stage for published weights.
PHOTOS = """--config.task.dataset=files --config.task.source=photos.npz --config.task.split=train
--config.task.reference_split=validation --config.task.image_size=64
--config.first_stage.path=first_stage.safetensors"""
MEASURES = "--samples=8 --batch=8 --metrics=fd"
PUBLISHED = "--model-channels=32 --size=8 --batches=1 --steps=1 --methods=rigl --dtype=float32"
SCRIBBLES = """--batch=4 --layers=1 --hidden=16 --diffusion-steps=21 --drawings=16 --buckets=2
--samples=4 --rounds=1 --steps=1 --draws=1"""
SMALLEST = "--model-channels=32 --size=8 --batch=1 --rounds=1"
STRUCTURED = f"{SMALLEST} --multiples=1 --block=16 --models=block:0.9"

# (pattern of a command without `python`, flags to append); all that match are appended.
TINY = [
    (r"^train\.py| sweep ", SCHEDULE),
    (r"^train\.py(?!.*(chirodiff|_vq|_dit|my_family))| sweep .*(digits|folder)", UNET),
    (r"^train\.py.*chirodiff| sweep .*chirodiff", GRU),
    (r"^train\.py.*_vq", CODES),
    (r"^train\.py.*_dit", DIT),
    (r"^train\.py.*fashion_", "--config.task.reference_split=validation"),
    (r"^train\.py.*(celebahq|bedrooms|imagenette)_ldm", PHOTOS),
    (r"^evaluate\.py| sweep ", MEASURES),
    # Training the classifier of such pictures, unoptimised, takes longer than all else.
    (r"^evaluate\.py.*imagenette", "--extractor=pixels"),
    (r"^-m sparsejax --help$", ""),
    (r"^-m sparsejax sample ", "--count=4 --batch=4"),
    (r"^-m sparsejax prepare ", "--config.batch_size=4"),
    (r"^-m sparsejax (export|sample) ", ""),
    (r"^-m sparsejax( report |\.keys_page$)", ""),
    (r"^-m benchmarks\.masking", "--rounds=1 --batch=2"),
    (r"^-m benchmarks\.topology", "--model-channels=32 --repeats=1"),
    (r"^-m benchmarks\.memory", "--model-channels=32 --rounds=1"),
    (r"^-m benchmarks\.full_unet", PUBLISHED),
    (r"^-m benchmarks\.chirodiff", SCRIBBLES),
    (r"^-m benchmarks\.sparse_sampling", f"{STRUCTURED} --ddim-steps=1"),
    (r"^-m benchmarks\.accelerator", "--tiny --minutes=0"),  # tests/test_benchmarks.py runs it all
    (r"^-m benchmarks\.dynamic_training", SMALLEST),
    (r"^-m benchmarks\.dynamic_training(?!.* --network gru)", "--multiples=1"),
    (r"^-m benchmarks\.dynamic_training", "--models=channel:0.5"),
    (r"^-m benchmarks\.dynamic_training.*--json .*-128\.json", "--block=4x16 --models=block:0.9"),
    (r"^-m benchmarks\.structures ", f"{SCHEDULE} --structures=channels --methods=rigl --rounds=1"),
    (r"^-m benchmarks\.structures .*digits", f"{UNET} --samples=8"),
    (r"^-m benchmarks\.structures .*chirodiff", GRU),
    (r"^-m benchmarks\.structures_report", ""),
    (r"^-m benchmarks\.evidence ", "--minutes=0"),  # tests/test_evidence.py runs it
    (r"^-m benchmarks\.evidence_report", ""),
    (r"^(docs/\w+|digits_as_arrays)\.py", ""),
]

# (pattern, reason). A reason that no documented command has is an error too.
NOT_RUN = [
    (r"^train\.py .*--(distributed|coordinator)", "needs several processes; tests/faults has them"),
    (r"^-m tests\.faults", "takes long; tests/faults has a few cases of each kind"),
    (r"--config\.task\.dataset=hf", "needs a dataset from the Hugging Face hub"),
    (r"--extractor inception", "needs the published weights of Inception"),
    (r"^docs/front_figure\.py", "draws committed results; run in the checkout, with all of docs/"),
    (r"^-m benchmarks\.against_pytorch", "needs an interpreter with PyTorch"),
]

FLAGS = re.DOTALL | re.MULTILINE
PLACEHOLDERS = {"FOLDER": "runs/sweeps/digits-sweep", "PYTHON": sys.executable}
FIRST_ALONE = ("seeds", "levels", "drop[-_]fractions", "update[-_]intervals")


def files_of(document):
    """Return the code of the files that a document shows; `# name.py` is the first line of each."""
    blocks = re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```", document.read_text(), FLAGS)
    return dict(blocks)


def tiny_flags(command):
    """Return the flags to append to a command, or None for an unknown one."""
    found = [flags.split() for pattern, flags in TINY if re.search(pattern, command)]
    if not found:
        return None
    # Of a sweep's axes, all methods and structures, and one value of all else.
    axes = [re.search(rf"--({name})[ =]([^, ]+)", command) for name in FIRST_ALONE]
    return sum(found, []) + [f"--{axis[1]}={axis[2]}" for axis in axes if axis]


def reason_not_to_run(command):
    """Return why a command isn't run, or None."""
    return next((reason for pattern, reason in NOT_RUN if re.search(pattern, command)), None)


def main(log, *arguments):
    """Run a command; see the head of this file. Returns its exit status."""
    arguments = [PLACEHOLDERS.get(argument, argument) for argument in arguments]
    command = " ".join(arguments)
    reason, flags = reason_not_to_run(command), tiny_flags(command)
    status, began = 0, time.monotonic()
    if reason is None and flags is None:
        print(f"python {command}: neither in TINY nor in NOT_RUN of {__file__}", file=sys.stderr)
        status = 2
    elif reason is None:
        status = subprocess.run([sys.executable, *arguments, *flags]).returncode
    line = {"command": command, "not_run": reason, "status": status}
    with pathlib.Path(log).open("a") as file:
        file.write(json.dumps(line | {"seconds": time.monotonic() - began}) + "\n")
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
