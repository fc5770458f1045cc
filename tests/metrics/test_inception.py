"""The Inception network computes what torch-fidelity computes."""

import jax
import numpy as np
import pytest

from sparsejax.metrics import inception_features
from sparsejax.metrics.inception import parameter_shapes
from sparsejax.metrics.inception_weights import inception_from_torch

# torch-fidelity 0.4.0, `FeatureExtractorInceptionV3` on PyTorch 2.13 (CPU) with the weights of
# `made_up_weights`, on the first of `pictures(32, 32)` and the second of `pictures(300, 200)`:
# of each feature the entries of `few`, then mean and standard deviation over the vector.
RECORDED = {
    (32, 32): {
        "64": (0.29419264, 0.41341397, 0.010804014, 0.030407749, 0.37817276, 0.34577182),
        "192": (0.3474631, 0.83505768, 1.2942293, 0.23404746, 0.48180428, 0.55506605),
        "768": (3.9480567, 1.4763491, 1.6850369, 0.093170151, 1.3047525, 1.7624049),
        "2048": (0.012512454, 0.03582003, 1.5628216, 5.1387687, 2.391355, 3.218348),
        "logits_unbiased": (2.1941693, -4.9485641, 4.4183726, 1.0285724, -0.27475318, 4.0071583),
        "logits": (1.9917644, -5.0397878, 4.4592185, 1.2651565, -0.28154719, 4.0111122),
    },
    (300, 200): {
        "64": (0.7253347, 0.78926116, 0.28944841, 0.1636982, 0.76595831, 0.52667189),
        "192": (0.50110233, 0.6912483, 2.556402, 0.25775129, 0.75699323, 0.91095454),
        "768": (5.1550579, 1.823952, 2.4667227, 0.10809445, 1.8823395, 2.5614734),
        "2048": (0.034113143, 0.027382413, 2.1377842, 6.6354666, 3.3072402, 4.4711461),
        "logits_unbiased": (3.3992431, -6.9070444, 6.3459215, 1.5171555, -0.34802392, 5.5477085),
        "logits": (3.1968381, -6.9982681, 6.3867674, 1.7537396, -0.3548179, 5.5513883),
    },
}


def few(features):
    count = len(features)
    entries = features[count * np.array([3, 6, 11, 15]) // 16]
    return [*entries, features.mean(dtype=float), features.std(dtype=float)]


def torch_shapes():
    """PyTorch's names and shapes of all tensors but the counters."""
    kinds = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
    shapes = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(parameter_shapes()):
        *modules, kind = (entry.key for entry in path)
        shape = leaf.shape[:-3:-1] + leaf.shape[:-2] if len(leaf.shape) > 1 else leaf.shape
        shapes[".".join([*modules, kinds.get(kind, kind)])] = shape
    return shapes


def made_up_weights(shapes):
    """Weights under which activations neither vanish nor grow much."""
    rng, tensors = np.random.RandomState(0), {}
    for name in sorted(shapes):
        u = rng.random_sample(shapes[name])
        match name.split(".")[-2:]:
            case "conv", "weight":
                u = (2 * u - 1) * np.sqrt(0.6 / np.prod(shapes[name][1:]))
            case "fc", "weight":
                u = (2 * u - 1) * np.sqrt(3 / 2048)
            case _, "weight":
                u = 0.5 + u
            case _, "running_var":
                u = 0.05 + 0.1 * u
            case _, "running_mean":
                u = (u - 0.5) * 0.2
            case _, "bias":
                u = (u - 0.5) * 0.5
        tensors[name] = u.astype(np.float32)
    return tensors


def pictures(height, width):
    i, y, x, c = np.indices((2, height, width, 3))
    return ((5 * x * x + 3 * x * y + 11 * y + 60 * c + 90 * i) // 8 % 256).astype(np.uint8)


def empty_weights():
    return {name: np.broadcast_to(np.float32(0), s) for name, s in torch_shapes().items()}


@pytest.fixture(scope="module")
def params():
    return inception_from_torch(made_up_weights(torch_shapes()))


@pytest.fixture(scope="module")
def extracted(params):
    """All features of pictures of two sizes."""
    names = tuple(inception_features.DIMENSIONS)
    return {
        size: dict(
            zip(names, inception_features.extract(params, pictures(*size), names), strict=True)
        )
        for size in RECORDED
    }


@pytest.mark.parametrize("name", list(inception_features.DIMENSIONS))
def test_features_are_those_of_torch_fidelity(extracted, name):
    for image, (size, recorded) in enumerate(RECORDED.items()):
        features = np.asarray(extracted[size][name])
        assert features.shape == (2, inception_features.DIMENSIONS[name])
        assert features.dtype == np.float32
        scale = np.abs(features).max()
        np.testing.assert_allclose(few(features[image]), recorded[name], rtol=0, atol=3e-6 * scale)


def test_a_name_gives_an_array_and_names_give_a_tuple_inside_jit():
    def shapes(features):
        extract = jax.jit(
            lambda params, images: inception_features.extract(params, images, features)
        )
        images = jax.ShapeDtypeStruct((2, 5, 7, 3), np.uint8)
        return jax.tree.map(np.shape, jax.eval_shape(extract, parameter_shapes(), images))

    assert shapes("2048") == (2, 2048)
    assert shapes(("logits", "64")) == ((2, 1008), (2, 64))


def test_resize_is_tensorflows(golden):
    arrays = golden("h_tf1_resize.npz")
    resize = jax.jit(inception_features.resize, static_argnums=(1, 2))
    for case in range(4):
        images = arrays[f"{case}_in"].transpose(0, 2, 3, 1)
        out = resize(images, *arrays[f"{case}_size"].tolist()).transpose(0, 3, 1, 2)
        # Of the larger two, every seventh pixel of the first channel is recorded.
        out = out[:, :1, ::7, ::7] if case >= 2 else out
        np.testing.assert_allclose(out, arrays[f"{case}_out"], rtol=0, atol=1e-4)


def test_parameters_are_as_many_as_published():
    leaves = jax.tree_util.tree_leaves_with_path(parameter_shapes())
    trained = [leaf.size for path, leaf in leaves if path[-1].key not in ("mean", "var")]
    assert sum(trained) == 23_850_960


def test_published_names_and_shapes_convert(golden):
    published = dict(golden("layers/inception_v3_compat_state_dict_shapes.json"))
    tensors = {name: np.broadcast_to(np.float32(0), shape) for name, shape in published.items()}
    params = inception_from_torch(tensors)
    shapes = jax.tree.map(lambda leaf: leaf.shape, parameter_shapes())
    assert jax.tree.map(np.shape, params) == shapes
    counters = {name for name in published if name.endswith("num_batches_tracked")}
    assert torch_shapes().keys() == published.keys() - counters


def test_kernels_are_transposed():
    tensors = empty_weights()
    kernels = "Mixed_6b.branch7x7_2.conv.weight", "fc.weight"
    for name in kernels:
        shape = tensors[name].shape
        tensors[name] = np.arange(np.prod(shape)).reshape(shape)
    params = inception_from_torch(tensors)
    kernel = params["Mixed_6b"]["branch7x7_2"]["conv"]["kernel"]
    assert kernel[0, 5, 3, 2] == tensors[kernels[0]][2, 3, 0, 5]
    assert params["fc"]["kernel"][7, 9] == tensors[kernels[1]][9, 7]


def test_tensors_of_another_network_are_named():
    tensors = empty_weights()
    del tensors["Mixed_7c.branch_pool.bn.running_var"]
    tensors["AuxLogits.conv0.conv.weight"] = np.zeros((128, 768, 1, 1))
    tensors["fc.weight"] = np.zeros((1000, 2048))
    with pytest.raises(ValueError, match="aren't those of FID's Inception") as refusal:
        inception_from_torch(tensors)
    for problem in (
        "1 missing (Mixed_7c.branch_pool.bn.running_var)",
        "1 unknown (AuxLogits.conv0.conv.weight)",
        "1 of another shape (fc.weight (1000, 2048) for (1008, 2048))",
    ):
        assert problem in str(refusal.value)


@pytest.mark.parametrize(
    ("images", "features", "problem"),
    [
        (np.zeros((1, 8, 8, 3), np.float32), "2048", "float32.*accepted: uint8"),
        (np.zeros((1, 8, 8, 1), np.uint8), "2048", r"\[1, 8, 8, 1\].*accepted: uint8"),
        (np.zeros((1, 8, 8, 3), np.uint8), ("2048", "pool3"), "pool3.*accepted: 64, 192"),
    ],
)
def test_what_cannot_be_extracted_is_said(images, features, problem):
    with pytest.raises(ValueError, match=problem):
        inception_features.extract({}, images, features)
