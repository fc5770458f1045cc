"""Jobs of benchmarks/accelerator.py in processes of their own: PyTorch, and training end to end.

See benchmarks/accelerator_layers.py for what a job is. The accelerator must be free: JAX doesn't
give back memory.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

from benchmarks import against_pytorch
from sparsejax.training.metrics_log import read_metrics

ROOT = pathlib.Path(__file__).resolve().parents[1]
TINY_DIGITS = """--config.steps=4 --config.batch_size=4 --config.optimizer.warmup_steps=1
--config.sparsity.update_interval=1 --config.checkpoint.every=0 --config.log.every=2
--config.model.channel_mult=(1,) --config.model.attention_resolutions=()"""


def output_of(command, deadline, folder):
    """Return what a process prints; RuntimeError with its last line of errors if it fails."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        timeout=max(1, deadline - time.time()),
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise RuntimeError(f"exit status {done.returncode}: {lines[-1] if lines else ''}")
    return done.stdout


def pytorch(variant, settings, results):
    """PyTorch's dense train step and sampling of the same network; see benchmarks/unet_torch.py."""
    python = shutil.which(settings.torch_python)
    probe = "import torch; print(torch.cuda.is_available())"
    has_cuda = against_pytorch.ask(python, probe) if python else None
    if has_cuda is None:
        raise RuntimeError(f"no PyTorch in {settings.torch_python}; see --torch-python")
    if has_cuda != "True" and not settings.tiny:
        raise RuntimeError(f"the PyTorch of {python} sees no GPU")
    arguments = argparse.Namespace(
        **settings._asdict(),
        ddim_steps=2 if settings.tiny else 10,
        device="cuda" if has_cuda == "True" else "cpu",
        compile_mode="default",
    )
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        against_pytorch.prepare(folder, arguments)
        steps = 1 if settings.tiny else 20
        command = [python, str(ROOT / "benchmarks" / "unet_torch.py"), name, "--draws=1"]
        command += [f"--threads={against_pytorch.core_count()}", f"--steps={steps}"]
        printed = output_of([*command, f"--variant={variant}"], settings.deadline, folder)
    figures = json.loads(printed.splitlines()[-1])
    rate = settings.batch / figures["train"]
    text = f"{1e3 * figures['train']:.4g} ms, {rate:.4g} images/s"
    if "dense step" in results:
        figures["ratio"] = figures["train"] / results["dense step"]["seconds"]
        text += f", {figures['ratio']:.2f} times as long as here (timed apart)"
    return figures | {"images_per_second": rate, "summary": text}


def digits(words, settings, results):
    """Train on digits with train.py, from the start of the process to its end."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "train.py"), f"--workdir={folder}/run"]
        command += ["--config", f"{ROOT / 'configs' / 'digits.py'}:sweep,{words}"]
        command += ["--config.log.tensorboard=False"]
        began = time.perf_counter()
        command += TINY_DIGITS.split() if settings.tiny else []
        output_of(command, settings.deadline, folder)
        seconds = time.perf_counter() - began
        last = read_metrics(pathlib.Path(folder, "run", "metrics.jsonl"))[-1]
    result = {"seconds": seconds, "steps": last["step"], "last": last}
    text = f"{seconds:.0f} s, {last['steps_per_second']:.4g} steps/s, loss {last['loss']:.4f}"
    if "digits dense" in results:
        base = results["digits dense"]["last"]["steps_per_second"]
        result["ratio"] = last["steps_per_second"] / base
        text += f", {result['ratio']:.2f} times dense (timed apart)"
    return result | {"summary": text}
