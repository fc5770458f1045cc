"""A first stage and a second, small enough to train in seconds, on coloured blobs."""

import numpy as np

from sparsejax.configuration import default_config

SIZE = 16


def write_blobs(path, train=24, validation=8):
    """Write an npz of images with one bright disc each; the label is its colour."""
    rng = np.random.default_rng(0)
    count = train + validation
    labels = np.arange(count) % 3
    y, x = np.mgrid[:SIZE, :SIZE]
    centres = rng.uniform(4, 12, (count, 2, 1, 1))
    discs = (y - centres[:, 0]) ** 2 + (x - centres[:, 1]) ** 2 < 16
    images = np.full((count, SIZE, SIZE, 3), 40, np.uint8)
    for i, label in enumerate(labels):
        images[i, discs[i], label] = 230
    np.savez(path, images=images, labels=labels, split=(np.arange(count) >= train).astype(int))


def blobs_config(source):
    """What both stages share."""
    config = default_config()
    config.steps = 8
    config.batch_size = 4
    config.task.dataset = "files"
    config.task.source = str(source)
    config.task.image_size = SIZE
    config.task.reference_split = "validation"
    config.task.flip = True
    config.log.every = 4
    config.log.tensorboard = False
    config.sample.every = 0
    config.sample.count = 4
    return config


def first_stage_config(source):
    """A VQ autoencoder of factor 2: 16x16x3 to 8x8x3."""
    config = blobs_config(source)
    config.name = "blobs_vq"
    config.task.name = "autoencoder"
    config.model.update(
        channels=8, channel_mult=(1, 2), num_res_blocks=1, codes=16, norm_groups=4, in_channels=3
    )
    config.sparsity.method = "dense"
    return config


def second_stage_config(source, first_stage, **changes):
    """A RigL UNet on the latents."""
    config = blobs_config(source)
    config.name = "blobs_ldm"
    config.task.name = "latents"
    config.first_stage.path = str(first_stage)
    config.model.update(
        in_channels=3,
        out_channels=3,
        model_channels=32,
        num_res_blocks=1,
        channel_mult=(1,),
        attention_resolutions=(),
        norm_groups=8,
    )
    config.sparsity.update_interval = 2
    config.sample.steps = 3
    config.update_from_flattened_dict(changes)
    return config
