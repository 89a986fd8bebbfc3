"""MAMe as a tensorflow-datasets builder, made from the download by hand: no TensorFlow, stored as ArrayRecord.

    mame_builder.prepare("MAMe", data_dir="datasets")
    pictures = images.open("tfds:mame/full", split="train", data_dir="datasets")

Pictures are stored as the bytes of their files.
"""

import dataclasses
import io
import pathlib
from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from data import sources
from data.pictures import images, mame

tfds = sources.tensorflow_datasets()


@dataclasses.dataclass
class Config(tfds.core.BuilderConfig):
    """Which table, and which copy of the pictures."""

    toy: bool = False
    pictures: str = "data"


class Mame(tfds.core.GeneratorBasedBuilder):
    """29 materials and techniques of artworks; sizes are the originals'."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Put MAMe_metadata.zip and MAMe_data.zip (or MAMe_data_256.zip), or what they hold, into one folder; they are "
        "at https://hpai.bsc.es/MAMe-dataset"
    )
    BUILDER_CONFIGS: ClassVar = [
        Config(name=f"{table}{copy}", toy=table == "toy", pictures=f"data{copy}")
        for table in ("full", "toy")
        for copy in ("", "_256")
    ]

    checksums = True  # whether archives must be the published ones

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(num_classes=None),
            "file": tfds.features.Text(),
            "museum": tfds.features.Text(),
            "object_id": tfds.features.Text(),
            "width": tfds.features.Scalar(np.int64),
            "height": tfds.features.Scalar(np.int64),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Art mediums: pictures of museum objects by material and technique.",
            features=tfds.features.FeaturesDict(features),
            homepage="https://hpai.bsc.es/MAMe-dataset",
            license="not stated",
        )

    def _split_generators(self, dl_manager):
        root = pathlib.Path(dl_manager.manual_dir)
        config = self.builder_config
        options = dict(toy=config.toy, pictures=config.pictures, checksums=self.checksums)
        splits = {split: images.open(f"mame:{root}", split=split, **options) for split in ("train", "val", "test")}
        self.info.features["label"].names = splits["train"].class_names
        return {split: self._generate_examples(pictures) for split, pictures in splits.items()}

    def _generate_examples(self, pictures: images.Images) -> Iterator[tuple[str, dict]]:
        for i, file in enumerate(pictures.files):
            name = pathlib.PurePosixPath(file.replace("\\", "/")).name
            scalars = {key: pictures.groups[key][i].item() for key in ("museum", "object_id", "width", "height")}
            content = io.BytesIO(pictures.read_fn.content(i))
            yield name, {"image": content, "label": int(pictures.labels_N[i]), "file": name, **scalars}


def prepare(folder: str, *, data_dir: str, config: str = "full", checksums: bool = True) -> str:
    """The builder's files made from a download, once.

    Args:
        folder: of the download; see `mame`.
        data_dir: where they go.
        config: `full`, `toy`, `full_256` or `toy_256`.
        checksums: whether archives must be the published ones.

    Returns:
        The folder of the prepared data, which `images.open("tfds:<folder>")` opens.
    """
    mame.catalogue(folder, checksums=checksums)  # refuses a wrong folder before anything is written
    builder = Mame(data_dir=data_dir, config=config, file_format="array_record")
    builder.checksums = checksums
    place = tfds.download.DownloadConfig(manual_dir=folder)
    builder.download_and_prepare(download_config=place)
    return str(builder.data_path)
