"""scikit-learn's 1,797 handwritten digits, 8x8 pixels: real data without a download.

Part of the UCI set "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak, 1998),
CC BY 4.0.
"""

from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

from sparsejax.data.decoding import encode
from sparsejax.types import Example


class Digits(tfds.core.GeneratorBasedBuilder):
    """tfds builder: `image` [8, 8, 1] uint8, `label` 0 to 9; one split, `train`."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1)),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            description=__doc__,
            license="CC BY 4.0",
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, Example]]]:
        del dl_manager
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, Example]]:
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = np.round(digits.images * (255 / 16)).astype(np.uint8)
        for index, (image, label) in enumerate(zip(images, digits.target, strict=True)):
            yield index, {"image": encode(image), "label": int(label)}
