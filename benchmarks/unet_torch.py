"""The Latent Diffusion UNet in PyTorch: what benchmarks/against_pytorch.py compares with.

It is started by that script, in an interpreter that needs torch and numpy only, on a folder that
holds the settings, the weights and an input; it prints its figures as JSON.

PyTorch gets what makes it fast: fused AdamW, `lerp` of all weights at once for the EMA, its own
attention, for sampling weights that have the computation's dtype already and, compiled on a CPU,
are laid out for it beforehand; TF32 on an accelerator in float32, where XLA has it too.
"""

import argparse
import copy
import json
import math
import pathlib
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional

GROUPS, HEAD = 32, 32
MULTIPLES, ATTENDED, BLOCKS = (1, 2, 3, 4), (1, 2, 3), 2  # ATTENDED: levels, not factors


class ResBlock(nn.Module):
    """Two normalised convolutions around an added time embedding, and a skip connection."""

    def __init__(self, channels, features, embedding):
        super().__init__()
        self.in_layers = nn.Sequential(
            nn.GroupNorm(GROUPS, channels), nn.SiLU(), nn.Conv2d(channels, features, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, features))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(GROUPS, features),
            nn.SiLU(),
            nn.Identity(),  # dropout's place
            nn.Conv2d(features, features, 3, padding=1),
        )
        same = channels == features
        self.skip_connection = nn.Identity() if same else nn.Conv2d(channels, features, 1)

    def forward(self, x, embedding):
        """Apply the block."""
        h = self.in_layers(x) + self.emb_layers(embedding)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(h)


class Attention(nn.Module):
    """Normalised self-attention over all positions, and a skip connection."""

    def __init__(self, channels):
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj_out = nn.Linear(channels, channels)

    def forward(self, x, _):
        """Attend; the time embedding goes unused."""
        batch, channels, height, width = x.shape
        h = self.norm(x).flatten(2).transpose(1, 2)
        qkv = self.qkv(h).view(batch, height * width, channels // HEAD, 3, HEAD)
        h = functional.scaled_dot_product_attention(*qkv.permute(3, 0, 2, 1, 4))
        h = self.proj_out(h.transpose(1, 2).reshape(batch, height * width, channels))
        return x + h.transpose(1, 2).view(batch, channels, height, width)


class Downsample(nn.Module):
    """Halve height and width."""

    def __init__(self, channels):
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x, _):
        """Convolve; the time embedding goes unused."""
        return self.op(x)


class Upsample(nn.Module):
    """Double height and width."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x, _):
        """Repeat and convolve; the time embedding goes unused."""
        return self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))


class UNet(nn.Module):
    """Predict the noise in x [batch, 3, height, width] at diffusion steps t [batch]."""

    def __init__(self, width):
        super().__init__()
        self.width, embedding = width, 4 * width
        self.time_embed = nn.Sequential(
            nn.Linear(width, embedding), nn.SiLU(), nn.Linear(embedding, embedding)
        )

        def block(channels, level):
            features = width * MULTIPLES[level]
            layers = [ResBlock(channels, features, embedding)]
            return layers + [Attention(features)] * (level in ATTENDED)

        channels, skips = width, [width]
        blocks = [[nn.Conv2d(3, width, 3, padding=1)]]
        for level, multiple in enumerate(MULTIPLES):
            for _ in range(BLOCKS):
                blocks.append(block(channels, level))
                channels = width * multiple
                skips.append(channels)
            if level + 1 < len(MULTIPLES):
                blocks.append([Downsample(channels)])
                skips.append(channels)
        self.input_blocks = nn.ModuleList(map(nn.ModuleList, blocks))

        middle = [ResBlock(channels, channels, embedding) for _ in range(2)]
        self.middle_block = nn.ModuleList([middle[0], Attention(channels), middle[1]])

        blocks = []
        for level in reversed(range(len(MULTIPLES))):
            for _ in range(BLOCKS + 1):
                blocks.append(block(channels + skips.pop(), level))
                channels = width * MULTIPLES[level]
            if level:
                blocks[-1].append(Upsample(channels))
        self.output_blocks = nn.ModuleList(map(nn.ModuleList, blocks))
        self.out = nn.Sequential(
            nn.GroupNorm(GROUPS, channels), nn.SiLU(), nn.Conv2d(channels, 3, 3, padding=1)
        )

    def forward(self, x, t):
        """Return the noise, float32, of the shape of x."""
        half = self.width // 2
        frequencies = torch.exp(-math.log(1e4) / half * torch.arange(half, device=x.device))
        angles = t[:, None] * frequencies
        embedding = torch.cat([angles.cos(), angles.sin()], dim=1).to(x.dtype)
        embedding = self.time_embed(embedding)
        h = self.input_blocks[0][0](x)
        skips = [h]
        for layers in self.input_blocks[1:]:
            h = run_layers(layers, h, embedding)
            skips.append(h)
        h = run_layers(self.middle_block, h, embedding)
        for layers in self.output_blocks:
            h = run_layers(layers, torch.cat([h, skips.pop()], dim=1), embedding)
        return self.out(h).float()


def run_layers(layers, h, embedding):
    """Apply layers one after the other."""
    for layer in layers:
        h = layer(h, embedding)
    return h


def load_model(folder, settings, layout):
    """Return the UNet with the weights of the folder."""
    model = UNet(settings["model_channels"])
    with np.load(folder / "weights.npz") as arrays:
        # Attention's 1x1 convolutions of sequences are linear layers here.
        weights = {k: torch.from_numpy(v[..., 0] if v.ndim == 3 else v) for k, v in arrays.items()}
    model.load_state_dict(weights)
    return model.to(settings["device"], memory_format=layout)


def make_train_step(settings, model, ema, predict, latents, alpha_bar):
    """Return a function that takes one train step and gives its loss, on the device."""
    o = settings["optimizer"]
    optimizer = torch.optim.AdamW(
        model.parameters(), o["rate"], (o["b1"], o["b2"]), weight_decay=o["decay"], fused=True
    )
    weights, averages = list(model.parameters()), list(ema.parameters())
    signal, spread = (a[:, None, None, None] for a in (alpha_bar.sqrt(), (1 - alpha_bar).sqrt()))
    is_half = settings["dtype"] == "bfloat16"
    taken = 0

    def step():
        nonlocal taken
        t = torch.randint(len(alpha_bar), (len(latents),), device=latents.device)
        noise = torch.randn_like(latents)
        x = signal[t] * latents + spread[t] * noise
        with torch.autocast(latents.device.type, torch.bfloat16, enabled=is_half):
            eps = predict(x, t)
        loss = functional.mse_loss(eps, noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        taken += 1
        decay = min(settings["ema_decay"], (1 + taken) / (10 + taken))
        with torch.no_grad():
            torch._foreach_lerp_(averages, weights, 1 - decay)
        return loss

    return step


@torch.inference_mode()
def sample(predict, like, alpha_bar, steps, dtype):
    """Draw examples by DDIM without noise, of the shape and layout of `like`."""
    total = len(alpha_bar)
    times = [i * total // steps + (steps < total) for i in range(steps)]
    alphas = [alpha_bar[t].item() for t in times]
    ends = [alpha_bar[0].item(), *alphas[:-1]]
    x = torch.randn_like(like)
    for t, alpha, before in reversed(list(zip(times, alphas, ends, strict=True))):
        eps = predict(x.to(dtype), torch.full((len(x),), t, device=x.device))
        x_0 = (x - math.sqrt(1 - alpha) * eps) / math.sqrt(alpha)
        x = math.sqrt(before) * x_0 + math.sqrt(1 - before) * eps
    return x


def allow_tf32(allowed):
    """Choose whether float32 products and convolutions may be TF32 on an accelerator."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def timed(function, repeats, device):
    """Return the seconds of a call, the mean of some; the device is waited for at the end only."""
    began = time.perf_counter()
    for _ in range(repeats):
        function()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / repeats


def measure(folder, settings, variant, steps, draws):
    """Return the seconds of a train step and of a draw, and of their first calls.

    Without draws, of the train step only.
    """
    device, dtype = settings["device"], getattr(torch, settings["dtype"])
    layout = torch.channels_last if "channels_last" in variant else torch.contiguous_format
    with np.load(folder / "example.npz") as arrays:
        x, t, alpha_bar = (torch.from_numpy(arrays[k]).to(device) for k in ("x", "t", "alpha_bar"))
    x = x.permute(0, 3, 1, 2).contiguous(memory_format=layout)
    model = load_model(folder, settings, layout)
    ema = copy.deepcopy(model)
    outputs = {}
    allow_tf32(False)
    with torch.inference_mode():
        outputs["float32"] = model(x, t)
    allow_tf32(True)
    torch.backends.cudnn.benchmark = True
    compiled = "compile" in variant
    if compiled:
        torch._inductor.config.freezing = False
    predict = torch.compile(model, mode=settings["mode"]) if compiled else model
    step = make_train_step(settings, model, ema, predict, x, alpha_bar)
    figures = {"first": {"train": timed(step, 1, device)}}
    timed(step, 1, device)
    figures["train"] = timed(step, steps, device)
    loss = step()
    assert torch.isfinite(loss), "the loss is not finite"
    figures["version"] = f"torch {torch.__version__}"
    figures["device"] = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    if not draws:
        return figures

    # What is compared isn't trained; what samples has the weights of the start, in `dtype`.
    del step, predict, model, ema
    model = load_model(folder, settings, layout).to(dtype).eval().requires_grad_(False)
    if compiled:
        torch._inductor.config.freezing = device == "cpu"
        model = torch.compile(model, mode=settings["mode"])

    def draw():
        return sample(model, x, alpha_bar, settings["ddim_steps"], dtype)

    figures["first"]["draw"] = timed(draw, 1, device)
    figures["draw"] = timed(draw, draws, device)
    with torch.inference_mode():
        outputs["timed"] = model(x.to(dtype), t)
    outputs = {key: eps.permute(0, 2, 3, 1).cpu().numpy() for key, eps in outputs.items()}
    np.savez(folder / f"outputs {variant}.npz", **outputs)
    return figures


def main():
    """Measure one variant."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--variant", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--draws", type=int, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    settings = json.loads((arguments.folder / "settings.json").read_text())
    counts = (arguments.steps, arguments.draws)
    print(json.dumps(measure(arguments.folder, settings, arguments.variant, *counts)))


if __name__ == "__main__":
    main()
