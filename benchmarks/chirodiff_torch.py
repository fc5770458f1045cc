"""ChiroDiff's bidirectional GRU in PyTorch: what benchmarks/chirodiff.py compares with.

It is started by that script, in an interpreter that needs torch and numpy only, on a folder that
holds the settings and the batches; it prints its figures as JSON.
"""

import argparse
import copy
import json
import pathlib
import statistics
import time

import numpy as np
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class Denoiser(torch.nn.Module):
    """The published network, on absolute points; a call is that of the one in JAX.

    If not `packed`, lengths are passed over: backwards, the GRU begins in the padding.
    """

    def __init__(self, settings, packed=True):
        super().__init__()
        self.packed = packed
        self.steps, pe_dim, hidden = settings["steps"], settings["pe_dim"], settings["hidden"]
        self.register_buffer("pe_proj_W", torch.randn(pe_dim // 2, 1))
        self.rnn = torch.nn.GRU(
            5 + pe_dim, hidden, settings["layers"], batch_first=True, bidirectional=True
        )
        self.out_proj = torch.nn.Linear(2 * hidden, hidden)
        self.final_proj = torch.nn.Sequential(torch.nn.Linear(hidden + pe_dim, 3))

    def forward(self, noisy, t_index, lengths):
        """Predict the noise of each point; the longest sequence fills the padded length."""
        angles = 8 * torch.pi * self.pe_proj_W[:, 0] * ((t_index + 1) / self.steps)[:, None]
        time = torch.cat([angles.sin(), angles.cos()], dim=-1)
        time = time[:, None].expand(-1, noisy.shape[1], -1)
        xy = noisy[..., :2]
        velocity = torch.diff(xy, dim=1, prepend=torch.zeros_like(xy[:, :1]))
        x = torch.cat([noisy, velocity, time], dim=-1)
        if self.packed:
            x = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        x, _ = self.rnn(x)
        if self.packed:
            x, _ = pad_packed_sequence(x, batch_first=True)
        return self.final_proj(torch.cat([self.out_proj(x), time], dim=-1))


def noise_schedule(steps):
    """Return betas, alpha_bar and the posterior's standard deviation, [steps] float32 each."""
    betas = torch.linspace(0.1 / steps, 20 / steps, steps, dtype=torch.float64)
    alpha_bar = torch.cumprod(1 - betas, 0)
    before = torch.cat([torch.ones(1), alpha_bar[:-1]])
    variance = betas * (1 - before) / (1 - alpha_bar)
    return betas.float(), alpha_bar.float(), variance.sqrt().float()


def load(folder, length):
    """Return points and lengths of the batch of one bucket, cut at its longest drawing."""
    with np.load(folder / f"batch_{length}.npz") as arrays:
        points, lengths = (torch.from_numpy(arrays[key]) for key in ("points", "lengths"))
    return points[:, : lengths.max()].contiguous(), lengths.long()


def make_train_step(settings, model):
    """Return a function that takes one train step on points and lengths, and gives its loss."""
    _, alpha_bar, _ = noise_schedule(settings["steps"])
    signal, spread = alpha_bar.sqrt()[:, None, None], (1 - alpha_bar).sqrt()[:, None, None]
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=settings["learning_rate"],
        weight_decay=settings["weight_decay"],
        betas=(settings["b1"], settings["b2"]),
    )
    ema = copy.deepcopy(model)
    taken = 0

    def step(points, lengths):
        nonlocal taken
        t = torch.randint(settings["steps"], (len(points),))
        noise = torch.randn_like(points)
        eps = model(signal[t] * points + spread[t] * noise, t, lengths)
        valid = torch.arange(points.shape[1]) < lengths[:, None]
        error = (eps - noise).square().mean(-1) * valid
        loss = (error.sum(1) / lengths).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings["clip_norm"])
        optimizer.step()
        taken += 1
        decay = min(settings["ema_decay"], (1 + taken) / (10 + taken))
        with torch.no_grad():
            for average, weights in zip(ema.parameters(), model.parameters(), strict=True):
                average.lerp_(weights, 1 - decay)
        return loss.item()

    return step


@torch.inference_mode()
def sample(settings, model, lengths):
    """Draw one drawing of each length by DDPM, [count, longest, 3]."""
    betas, alpha_bar, sigma = noise_schedule(settings["steps"])
    x = torch.randn(len(lengths), lengths.max(), 3)
    for t in reversed(range(settings["steps"])):
        eps = model(x, torch.full(lengths.shape, t), lengths)
        x = (x - betas[t] / (1 - alpha_bar[t]).sqrt() * eps) / (1 - betas[t]).sqrt()
        if t:
            x = x + settings["noise_weight"] * sigma[t] * torch.randn_like(x)
    return x


def timed(function):
    """Return the seconds that a call takes."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def measure(settings, batches, packed, steps, draws):
    """Return the median seconds of a train step of each bucket, and of drawing the samples."""
    model = Denoiser(settings, packed)
    step = make_train_step(settings, model)
    seconds = [[timed(lambda b=b: step(*b)) for b in batches.values()] for _ in range(steps + 1)]
    train = dict(zip(batches, map(statistics.median, zip(*seconds[1:], strict=True)), strict=True))
    lengths = torch.tensor(settings["sample_lengths"])
    drawn = [timed(lambda: sample(settings, model, lengths)) for _ in range(draws + 1)]
    version = f"torch {torch.__version__}"
    return {"train": train, "sample": statistics.median(drawn[1:]), "version": version}


def write_example(settings, batch, path):
    """Write weights, an input and its output."""
    model = Denoiser(settings)
    points, lengths = batch
    t = torch.randint(settings["steps"], (len(points),))
    with torch.inference_mode():
        eps = model(points, t, lengths)
    weights = {f"weights/{name}": value.numpy() for name, value in model.state_dict().items()}
    np.savez(path, noisy=points, t=t, lengths=lengths, eps=eps, **weights)


def main():
    """Measure, or with --check write an example for the comparison of outputs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--draws", type=int, default=2)
    parser.add_argument("--padded", action="store_true")
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    settings = json.loads((arguments.folder / "settings.json").read_text())
    batches = {length: load(arguments.folder, length) for length in settings["shares"]}
    if arguments.check:
        longest = list(batches.values())[-1]
        write_example(settings, longest, arguments.folder / "example.npz")
    else:
        packed = not arguments.padded
        print(json.dumps(measure(settings, batches, packed, arguments.steps, arguments.draws)))


if __name__ == "__main__":
    main()
