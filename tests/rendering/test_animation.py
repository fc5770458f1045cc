import numpy as np
import pytest
from PIL import Image, ImageSequence

from sparsejax.rendering import stroke_grid, to_gif
from tests.rendering.drawings import HOUSE, random_walks


def read(path):
    with Image.open(path) as gif:
        frames = [np.array(frame.convert("RGB")) for frame in ImageSequence.Iterator(gif)]
        durations = []
        for index in range(gif.n_frames):
            gif.seek(index)
            durations.append(gif.info["duration"])
        return np.array(frames, int), durations, gif.info.get("loop")


def ink(frames):
    return (frames.min(-1) < 200).sum((1, 2))


@pytest.fixture(scope="module")
def walks(tmp_path_factory):
    drawings = random_walks(5, 120)
    path = tmp_path_factory.mktemp("gif") / "walks.gif"
    to_gif(drawings, path, cell=64)
    return drawings, path


def test_frames_and_durations(walks):
    frames, durations, loop = read(walks[1])
    assert len(frames) == 40
    assert durations[-1] == 1500
    assert sum(durations[:-1]) == pytest.approx(3000, rel=0.1)
    assert loop == 0
    assert walks[1].stat().st_size < 100_000


def test_ink_grows_to_the_picture_of_the_grid(walks):
    drawings, path = walks
    frames, _, _ = read(path)
    grid = stroke_grid(drawings, cell=64).astype(int)
    difference = np.abs(frames[-1] - grid)
    assert difference.mean() < 1
    assert difference.max() < 64
    assert (frames[-1][(grid == 255).all(-1)] == 255).all()
    amounts = ink(frames)
    assert amounts[0] < amounts[-1] / 8
    # The tip takes its ink along, so the amount may fall a little where it passes over a line.
    assert (np.diff(amounts) > -40).all()
    # What is drawn stays: apart from the tip, a frame is a part of the last one.
    extra = ((frames.min(-1) < 200) & (grid.min(-1) >= 255)).sum((1, 2))
    assert extra.max() < 5 * 30
    assert extra[-1] == 0


def test_strokes_appear_in_order(tmp_path):
    """The left half is the first stroke, the right half the second, of as many points."""
    x = np.repeat([0, 1], 20)
    pen = np.tile(np.arange(20) == 19, 2)
    drawing = np.stack([x, np.tile(np.linspace(0, 1, 20), 2), pen], -1)
    to_gif(drawing, tmp_path / "two.gif", cell=64, frames=10)
    frames, _, _ = read(tmp_path / "two.gif")
    left, right = ink(frames[:, 1:-1, 1:32]), ink(frames[:, 1:-1, 34:-1])
    assert (right[:5] == 0).all()
    assert (right[5:] > 0).all()
    assert (np.diff(left[:5]) > 0).all()
    assert len(set(left[5:])) == 1


def test_the_tip_is_marked_until_the_end(tmp_path):
    drawing = np.stack([np.linspace(0, 1, 11), np.zeros(11), np.arange(11) == 10], -1)
    to_gif(drawing, tmp_path / "line.gif", cell=64, frames=11)
    frames, _, _ = read(tmp_path / "line.gif")
    heights = (frames[:, 1:-1, 1:-1].min(-1) < 200).any(2).sum(1)
    assert list(heights) == [4] * 10 + [2]


@pytest.mark.parametrize("drawings", [np.zeros((0, 3, 3)), np.full((2, 3, 3), 2.0), HOUSE[:1]])
def test_little_to_draw(tmp_path, drawings):
    to_gif(drawings, tmp_path / "little.gif", cell=32)
    frames, _, _ = read(tmp_path / "little.gif")
    np.testing.assert_allclose(frames[-1], stroke_grid(drawings, cell=32), atol=16)
