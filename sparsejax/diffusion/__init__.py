"""Diffusion: noise schedules, losses, samplers. Knows no network and no sparsity."""
