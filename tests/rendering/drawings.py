"""Small drawings with known pictures."""

import numpy as np

LINE = np.array([[0, 0, 0], [1, 0, 1]], np.float32)
DOT = np.array([[3, -2, 1]], np.float32)
# A triangle, a bar that crosses it, a dot, and padding far away.
HOUSE = np.array(
    [[-8, 9, 0], [0, -10, 0], [8, 9, 0], [-8, 9, 1], [-3, 3, 0], [9, 3, 1], [5, -5, 1]]
    + [[1e6, np.nan, 2], [-1e6, 0, 2]],
    np.float32,
)


def random_walks(count, length, seed=0):
    """Return drawings [count, length, 3] float32 of walks in strokes of 25 points."""
    rng = np.random.default_rng(seed)
    points = np.cumsum(rng.normal(size=(count, length, 2)), axis=1)
    pen = np.zeros((count, length, 1))
    pen[:, 24::25] = 1
    return np.concatenate([points, pen], -1).astype(np.float32)
