"""Images with a class for every pixel, to train a second stage on: the dataset's own label maps or a folder of them."""

import itertools
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import ADE20K, DFC2020, VOC, COCOSemantic, EndoTect, LabelledImageFolder
from datamodules.image_transforms import ImageTransform
from datamodules.labelled_images import ImageSet, MaskedImageDataset
from datamodules.synthetic_images import FOLDERS, ImageSettings, write_images
from lightning_vos.errors import ConfigError, DatasetNotFoundError, MaskError
from lightning_vos.evaluation.semantic import ClassSet
from lightning_vos.io.masks import write_mask
from lightning_vos.io.overlay import write_image
from lightning_vos.structures import LabelledImages, MaskedImages

MODULES = {
    "voc": VOC,
    "coco_semantic": COCOSemantic,
    "ade20k": ADE20K,
    "dfc2020": DFC2020,
    "endotect": EndoTect,
    "labelled_images": LabelledImageFolder,
}
SIZE = (64, 80)
STILL = {"scale": (1.0, 1.0), "flip": 0.0, "jitter": 0.0}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    for layout in MODULES:
        count = 20 if layout == "endotect" else 8  # an image of a class each: enough for some polyps
        settings = ImageSettings(layout=layout, train=count, val=1, height=SIZE[0], width=SIZE[1])
        write_images(root / layout / FOLDERS[layout], settings)
    return root


def make(layout, root, stage="fit", **options):
    own = {"window": 48} if layout == "dfc2020" else {"transform": ImageTransform(crop=48)}
    module = MODULES[layout](root, **({"batch_size": 2, "workers": 0} | own | options))
    if stage:
        module.setup(stage)
    return module


def drawn(module, count=4):
    return list(itertools.islice(module.train_dataloader(), count))


def write_folder(module, folder, value=None):
    """A label map of one value, or of all, for each training image."""
    values = np.arange(module.class_set.values.start, module.class_set.values.stop)
    for name in module.images("train").names:
        mask = np.resize(values, SIZE[0] * SIZE[1]).reshape(SIZE) if value is None else np.full(SIZE, value)
        write_mask(folder / f"{name}.png", mask.astype(np.uint8))
    return folder


def said(error):
    assert len(str(error.value).splitlines()) <= 8
    return str(error.value)


@pytest.mark.parametrize("layout", MODULES)
def test_own_masks_come_as_classes_from_0_on(layout, written):
    module = make(layout, written / layout, train_masks="own")
    seen = set()
    for batch in drawn(module, 8):
        assert isinstance(batch, MaskedImages)
        assert batch.images.shape == (2, 13 if layout == "dfc2020" else 3, 48, 48)
        assert (batch.masks.shape, batch.masks.dtype) == ((2, 48, 48), torch.int64)
        assert len(batch.names) == 2
        seen |= set(batch.masks.unique().tolist())
    classes = len(module.class_set.names)
    assert seen <= {*range(classes), 255}
    assert len(seen - {255}) > 1
    images = module.images("train")
    values = set(itertools.chain(*(np.unique(images.mask(number)) for number in range(len(images.names)))))
    first = module.class_set.first
    assert seen - {255} <= {int(value) - first for value in values if value not in (255, module.class_set.ignored)}


def test_without_masks_the_images_come_with_labels(written):
    assert all(isinstance(batch, LabelledImages) for batch in drawn(make("voc", written / "voc")))


def test_only_polyps_with_a_mask_teach_what_a_polyp_is(written):
    module = make("endotect", written / "endotect", train_masks="own")
    images = module.images("train")
    assert 0 < len(images.names) < len(make("endotect", written / "endotect").images("train").names)
    assert all(images.mask(number) is not None for number in range(len(images.names)))


@pytest.mark.parametrize("layout", ["voc", "coco_semantic", "ade20k", "dfc2020"])
@pytest.mark.parametrize("in_run", [False, True])
def test_masks_of_a_folder_have_the_values_of_the_dataset(layout, in_run, written, tmp_path):
    module = make(layout, written / layout, None)
    write_folder(module, tmp_path / "masks" if in_run else tmp_path)
    module = make(layout, written / layout, train_masks=tmp_path)
    seen = set().union(*(batch.masks.unique().tolist() for batch in drawn(module)))
    assert seen - {255} == set(range(len(module.class_set.names)))


@pytest.mark.parametrize("layout", ["voc", "ade20k"])
@pytest.mark.parametrize("value", [255, "ignored"])
def test_what_belongs_to_no_class_is_not_learnt(layout, value, written, tmp_path):
    module = make(layout, written / layout, None)
    write_folder(module, tmp_path, module.class_set.ignored if value == "ignored" else value)
    (batch,) = drawn(make(layout, written / layout, train_masks=tmp_path), 1)
    assert batch.masks.unique().tolist() == [255]


def test_the_truth_of_training_images_is_not_read_where_masks_come_from_a_folder(written, tmp_path):
    shutil.copytree(written / "voc", tmp_path / "voc")
    folder = write_folder(make("voc", tmp_path / "voc", None), tmp_path / "pseudo")
    for name in ("Annotations", "SegmentationClassAug"):
        shutil.rmtree(tmp_path / "voc/VOC2012" / name)
    assert len(drawn(make("voc", tmp_path / "voc", train_masks=folder))) == 4
    with pytest.raises(DatasetNotFoundError, match="No labels"):
        make("voc", tmp_path / "voc")


def test_images_without_a_mask_are_named(written, tmp_path):
    module = make("voc", written / "voc", None)
    lacking = module.images("train").names[3]
    (write_folder(module, tmp_path) / f"{lacking}.png").unlink()
    with pytest.raises(DatasetNotFoundError) as error:
        make("voc", written / "voc", train_masks=tmp_path)
    assert f"1 of the 8 images of VOC 2012 train_aug: data.train_masks={tmp_path}" in said(error)
    assert f"missing: {lacking}\n" in said(error)
    with pytest.raises(DatasetNotFoundError, match="found there: no such folder"):
        make("voc", written / "voc", train_masks=tmp_path / "other")


@pytest.mark.parametrize("layout", ["voc", "dfc2020"])
def test_a_mask_of_another_size_is_named(layout, written, tmp_path):
    module = make(layout, written / layout, None)
    write_folder(module, tmp_path)
    name = module.images("train").names[0]
    write_mask(tmp_path / f"{name}.png", np.zeros((64, 81), np.uint8))
    with pytest.raises(MaskError) as error:
        drawn(make(layout, written / layout, train_masks=tmp_path))
    assert f"{name}.png" in said(error)
    assert "found 81x64, expected 80x64" in said(error)


@pytest.mark.parametrize(("shape", "told"), [((64, 80, 3), "found 8 bits, RGB"), ((64, 81), "found 81x64")])
def test_a_mask_that_cannot_be_one_is_found_before_a_training_begins(shape, told, written, tmp_path):
    module = make("voc", written / "voc", None)
    write_folder(module, tmp_path)
    name = module.images("train").names[3]
    Image.fromarray(np.zeros(shape, np.uint8)).save(tmp_path / f"{name}.png")
    with pytest.raises(MaskError) as error:
        make("voc", written / "voc", train_masks=tmp_path)
    assert f"{name}.png" in said(error)
    assert told in said(error)
    assert name not in drawn(make("voc", written / "voc", train_masks=tmp_path, skip_broken=True))[0].names


@pytest.mark.parametrize(("layout", "value"), [("voc", 21), ("ade20k", 151), ("dfc2020", 8)])
def test_a_value_of_no_class_is_named_or_its_image_skipped(layout, value, written, tmp_path, recwarn):
    module = make(layout, written / layout, None)
    write_folder(module, tmp_path, module.class_set.first)
    names = module.images("train").names
    write_mask(tmp_path / f"{names[0]}.png", np.full(SIZE, value, np.uint8))
    with pytest.raises(MaskError) as error:
        drawn(make(layout, written / layout, train_masks=tmp_path))
    assert f"{names[0]}.png" in said(error)
    assert f"found {value}\n" in said(error)
    batches = drawn(make(layout, written / layout, train_masks=tmp_path, skip_broken=True))
    assert set(itertools.chain(*(batch.names for batch in batches))) == set(names[1:])
    assert any("1 of 8 images so far" in str(warning.message) for warning in recwarn)


def test_a_dataset_without_masks_has_none_of_its_own_to_train_on(written, tmp_path):
    shutil.copytree(written / "labelled_images", tmp_path / "set")
    shutil.rmtree(tmp_path / "set/masks")
    with pytest.raises(ConfigError, match=r"Labelled images train .* has no label maps"):
        make("labelled_images", tmp_path / "set", train_masks="own")


def test_official_preprocessing_has_no_masks(written):
    with pytest.raises(ConfigError, match="official"):
        make("voc", written / "voc", None, preprocessing="official", train_masks="own")


def test_batches_are_a_function_of_the_seed_and_the_same_with_workers(written, monkeypatch):
    def batches(seed, workers=0):
        monkeypatch.setenv("PL_GLOBAL_SEED", seed)
        return drawn(make("voc", written / "voc", train_masks="own", workers=workers))

    first, other = batches("1"), batches("2")
    for one, two in zip(first, batches("1", workers=1), strict=True):
        assert torch.equal(one.images, two.images)
        assert torch.equal(one.masks, two.masks)
    assert not torch.equal(first[0].masks, other[0].masks)


# Augmentation


@pytest.fixture
def painted(tmp_path):
    """An image set of one image whose red channel is ten times its label map."""

    def paint(mask):
        image = np.zeros((*mask.shape, 3), np.uint8)
        image[..., 0] = 10 * mask
        write_image(tmp_path / "image.png", image)
        write_mask(tmp_path / "mask.png", mask)
        class_set = ClassSet("numbers", tuple(map(str, range(20))))
        return ImageSet(["one"], [str(tmp_path / "image.png")], class_set, 0, masks=[str(tmp_path / "mask.png")])

    return paint


def items(images, count, **settings):
    transform = ImageTransform(**({"mean": (0.0,), "std": (1.0,)} | settings))
    dataset = MaskedImageDataset(images, None, transform, seed=0)
    return [dataset[number] for number in range(count)]


def test_a_mask_is_cropped_and_flipped_with_its_image(painted):
    images = painted(np.random.default_rng(0).integers(0, 20, (30, 40), dtype=np.uint8))
    found = items(images, 30, crop=16, **STILL | {"flip": 0.5, "vertical_flip": 0.5})
    for item in found:
        assert torch.equal((item.images[0] * 25.5).round().long(), item.masks)
    assert len({item.masks.numpy().tobytes() for item in found}) == 30


def test_a_mask_is_scaled_with_its_image_to_the_nearest_pixel(painted):
    mask = np.zeros((40, 40), np.uint8)
    mask[10:30, 10:30] = 19
    scales = set()
    for item in items(painted(mask), 20, crop=96, **STILL | {"scale": (0.5, 2.0)}):
        assert set(item.masks.unique().tolist()) == {0, 19, 255}
        size, square = int((item.masks != 255).sum()) ** 0.5, int((item.masks == 19).sum()) ** 0.5
        assert square == pytest.approx(size / 2, abs=1.5)
        scales.add(round(size / 40, 1))
        is_square = item.images[0] > 0.5 * 190 / 255
        assert (is_square == (item.masks == 19)).float().mean() > 0.98
        assert not item.images[:, item.masks == 255].any()
    assert min(scales) < 0.8
    assert max(scales) > 1.6


def test_colours_of_a_mask_stay(painted):
    (item,) = items(painted(np.full((20, 20), 7, np.uint8)), 1, crop=20, **STILL | {"jitter": 1.0})
    assert item.masks.unique().tolist() == [7]
    assert item.images[0].mean() != pytest.approx(70 / 255, abs=1e-3)


def test_an_image_is_augmented_alike_with_its_mask_and_without():
    rng = np.random.default_rng(0)
    for seed in range(10):
        image = rng.integers(0, 256, (50, 70, 3), dtype=np.uint8)
        transform = ImageTransform(crop=48)
        alone = transform.train(image, np.random.default_rng(seed))
        planes, _ = transform.train_masked(image, np.zeros((50, 70), np.uint8), np.random.default_rng(seed))
        assert np.array_equal(alone, planes)
