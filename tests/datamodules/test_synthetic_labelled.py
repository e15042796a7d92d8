"""The rendered images as a data module: written once, read as anybody's own, the parts of the set as splits."""

import numpy as np
import pytest

from datamodules import SyntheticImages
from datamodules.synthetic_images import ImageSettings
from lightning_vos.errors import ConfigError

SMALL = ImageSettings("labelled_images", train=6, val=3, height=64, width=72)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("rendered")


def test_it_is_written_where_it_is_not_there_and_read(root):
    data = SyntheticImages(root, SMALL, batch_size=2, workers=0)
    data.prepare_data()
    written = {path: path.stat().st_mtime_ns for path in root.rglob("*.*")}
    data.prepare_data()
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*.*")} == written
    assert data.class_names == ("class-01", "class-02", "class-03", "class-04")
    assert data.class_set.names == ("background", *data.class_names)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch.labels.shape == (2, 4)
    assert all(name.startswith("train-") for name in batch.names)
    samples = list(data.val_dataloader())
    assert [sample.image.name for sample in samples] == [f"val-{number:06}" for number in range(3)]
    for sample in samples:
        shown = np.setdiff1d(np.unique(sample.truth.mask), (0, 255)) - 1
        assert np.flatnonzero(sample.truth.labels).tolist() == shown.tolist()


def test_the_training_images_can_be_tested_on(root):
    data = SyntheticImages(root, SMALL, test_split="train", predict_split="train", workers=0)
    data.prepare_data()
    data.setup("test")
    assert "train" in data.describe("test")[0]
    samples = list(data.test_dataloader())
    assert len(samples) == 6
    assert all(sample.truth.mask is not None for sample in samples)
    data.setup("predict")
    assert [sample.truth for sample in data.predict_dataloader()] == [None] * 6


def test_other_settings_are_refused(root):
    SyntheticImages(root, SMALL).prepare_data()
    with pytest.raises(ConfigError, match="other settings"):
        SyntheticImages(root, ImageSettings("labelled_images", train=7, val=3, height=64, width=72)).prepare_data()
    with pytest.raises(ConfigError, match=r"layout is voc.*\n.*data demo"):
        SyntheticImages(root, ImageSettings("voc"))
