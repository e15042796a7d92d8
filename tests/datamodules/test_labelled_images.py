"""Images with image-level labels under every loader, on each layout: what is drawn, labelled, and never leaks."""

import csv
import itertools
import json
import logging
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from PIL import Image

import datamodules
from datamodules import ADE20K, DFC2020, VOC, COCOSemantic, EndoTect, LabelledImageFolder
from datamodules.image_transforms import ImageTransform
from datamodules.label_files import LabelTable, labels_of, read_labels, write_labels
from datamodules.synthetic_images import FOLDERS, ImageSettings, write_images
from datamodules.voc import write_train_aug
from lightning_vos.errors import ConfigError, DatasetNotFoundError, FrameError, MaskError, UserError
from lightning_vos.io.masks import read_mask, write_mask
from lightning_vos.models.token_masking.pseudo_masks import pixel_values
from lightning_vos.structures import LabelledImages, ScoredImage

REAL = Path(
    os.environ.get("LIGHTNING_VOS_REFERENCE", Path(__file__).resolve().parents[2].parent / "shared" / "reference")
).parent / "data/real"  # fmt: skip
SMALL = {"train": 10, "val": 5, "height": 64, "width": 80}
MODULES = {
    "voc": VOC,
    "coco_semantic": COCOSemantic,
    "ade20k": ADE20K,
    "dfc2020": DFC2020,
    "endotect": EndoTect,
    "labelled_images": LabelledImageFolder,
}
LAYOUTS = list(MODULES)

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(does not have many workers|LeafSpec|treespec|predict returned None).*"
)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    for layout in LAYOUTS:
        write_images(root / layout / FOLDERS[layout], ImageSettings(layout=layout, **SMALL))
    return root


@pytest.fixture
def copied(written, tmp_path):
    """A copy of one set, to be damaged."""

    def copy(layout):
        shutil.copytree(written / layout, tmp_path / layout)
        return tmp_path / layout

    return copy


def make(layout, root, stage=None, **options):
    own = {"window": 48} if layout == "dfc2020" else {"transform": ImageTransform(crop=48)}
    module = MODULES[layout](root, **({"batch_size": 2, "workers": 0} | own | options))
    if stage:
        module.setup(stage)
    return module


def drawn(module, count=2):
    return list(itertools.islice(module.train_dataloader(), count))


class Recorder(LightningModule):
    """Keeps what the loaders give."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.batches, self.images = [], []

    def training_step(self, batch, batch_idx):
        self.batches.append(batch)
        return self.layer(batch.images.mean().reshape(1, 1)).sum()

    def validation_step(self, batch, batch_idx):
        self.images.append(batch)

    test_step = predict_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def trainer(tmp_path):
    def build(**options):
        quiet = dict.fromkeys(
            (
                "logger",
                "enable_progress_bar",
                "enable_model_summary",
                "enable_checkpointing",
                "use_distributed_sampler",
            ),
            False,
        )
        return Trainer(
            accelerator="cpu", devices=1, num_sanity_val_steps=0, default_root_dir=tmp_path, **(quiet | options)
        )

    return build


# Every dataset


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_module_trains_validates_tests_and_predicts(layout, written, trainer):
    module, data = Recorder(), make(layout, written / layout)
    trainer(max_steps=2, val_check_interval=2, check_val_every_n_epoch=None).fit(module, datamodule=data)
    assert len(module.batches) == 2
    for batch in module.batches:
        assert isinstance(batch, LabelledImages)
        assert batch.images.shape == (2, 13 if layout == "dfc2020" else 3, 48, 48)
        assert batch.images.dtype == batch.labels.dtype == torch.float32
        assert batch.labels.shape == (2, len(data.class_names))
        assert set(batch.labels.flatten().tolist()) <= {0.0, 1.0}
        assert len(batch.names) == 2
    validated = len(module.images)
    run = trainer()
    run.test(module, datamodule=data)
    tested = len(module.images) - validated
    run.predict(module, datamodule=data)
    assert validated == tested == len(module.images) - validated - tested == len(data.images("test").names)
    for scored in module.images:
        assert isinstance(scored, ScoredImage)
        assert scored.image.pixels.shape[1:] == scored.image.size == (64, 80)
        if scored.truth is not None and scored.truth.mask is not None:
            assert scored.truth.mask.shape == scored.image.size
    assert all(scored.truth is not None for scored in module.images[: validated + tested])
    assert all(scored.truth is None for scored in module.images[validated + tested :])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_labels_are_what_masks_show(layout, written):
    data = make(layout, written / layout, "test")
    first = data.class_set.values.stop - len(data.class_names)
    masks = 0
    for scored in data.test_dataloader():
        labels = set(torch.nonzero(scored.truth.labels).flatten().tolist())
        assert labels
        if scored.truth.mask is None:
            assert layout == "endotect"
            continue
        masks += 1
        values, counts = scored.truth.mask.unique(return_counts=True)
        known = (values != data.class_set.ignored) & (values >= first)
        if layout == "dfc2020":
            known &= counts >= 0.1 * scored.truth.mask.numel()
        if layout == "endotect":
            assert labels == {data.class_names.index("polyps")}
            assert values.tolist() == [0, 1]
        else:
            assert labels == set((values[known].int() - first).tolist())
    assert masks or layout == "endotect"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_a_network_sees_at_test_is_a_function_of_the_image_alone(layout, copied):
    """All truth is exchanged for garbage, the inputs do not change; to predict, it is not even read."""
    root = copied(layout)
    before = list(make(layout, root, "test").test_dataloader())
    for path in root.rglob("*"):
        if path.suffix == ".png" and "JPEGImages" not in path.parts:
            write_mask(path, np.full(read_mask(path).shape, 1, np.uint8))
        elif path.suffix == ".tif":
            Image.fromarray(np.full((64, 80), 10, np.uint8)).save(path)
        elif "masks" in path.parts and path.suffix == ".jpg":
            Image.fromarray(np.zeros((64, 80), np.uint8)).save(path)
        elif path.name == "instances_val2014.json":
            content = json.loads(path.read_text())
            last = content["categories"][-1]["id"]
            content["annotations"] = [row | {"category_id": last} for row in content["annotations"]]
            path.write_text(json.dumps(content))
        elif path.suffix == ".xml":
            path.write_text("<annotation><object><name>sofa</name></object></annotation>")
    after = list(make(layout, root, "test").test_dataloader())
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one.image.pixels, other.image.pixels)
        assert (one.image.name, one.image.size) == (other.image.name, other.image.size)
    if layout != "endotect":  # its labels are folders, and these images may show no polyp
        assert any(not torch.equal(one.truth.mask, other.truth.mask) for one, other in zip(before, after, strict=True))
    for path in [path for path in root.rglob("*") if path.suffix in (".png", ".tif") and path.is_file()]:
        path.write_bytes(b"damaged")
    predicted = list(make(layout, root, "predict").predict_dataloader())
    assert all(torch.equal(one.image.pixels, other.image.pixels) for one, other in zip(before, predicted, strict=True))


@pytest.mark.parametrize("layout", ["voc", "dfc2020"])
@pytest.mark.parametrize("preprocessing", ["paper", "official"])
def test_batches_are_a_function_of_seed_and_step(layout, preprocessing, written, monkeypatch):
    def batches(seed, step=0, count=4):
        monkeypatch.setenv("PL_GLOBAL_SEED", seed)
        module = make(layout, written / layout, "fit", preprocessing=preprocessing)
        module.trainer = SimpleNamespace(global_rank=0, world_size=1, global_step=step, accumulate_grad_batches=1)
        return drawn(module, count)

    whole, resumed, other = batches("1"), batches("1", 2, 2), batches("2")
    for one, two in zip(whole[2:], resumed, strict=True):
        assert torch.equal(one.images, two.images)
        assert torch.equal(one.labels, two.labels)
        assert one.names == two.names
    assert not torch.equal(whole[0].images, other[0].images)
    assert not torch.equal(whole[0].images, whole[1].images)


def test_workers_give_what_the_process_itself_gives(written):
    alone, helped = (make("voc", written / "voc", "fit", workers=workers) for workers in (0, 2))
    for one, two in zip(drawn(alone, 3), drawn(helped, 3), strict=True):
        assert torch.equal(one.images, two.images)
    for one, two in zip(alone.val_dataloader(), helped.val_dataloader(), strict=True):
        assert torch.equal(one.image.pixels, two.image.pixels)
        assert torch.equal(one.truth.mask, two.truth.mask)
        assert (one.number, one.image.size) == (two.number, two.image.size)


@pytest.mark.parametrize("world", [1, 2])
def test_every_image_comes_once_an_epoch_over_all_ranks(written, world):
    names = []
    for rank in range(world):
        module = make("voc", written / "voc", "fit", batch_size=1)
        module.trainer = SimpleNamespace(global_rank=rank, world_size=world, global_step=0, accumulate_grad_batches=1)
        names.append([batch.names[0] for batch in drawn(module, 20 // world)])
    order = [name for step in zip(*names, strict=True) for name in step]
    everything = set(module.images("train").names)
    assert set(order[:10]) == set(order[10:]) == everything
    assert order[:10] != order[10:]


@pytest.mark.parametrize("world", [2, 3, 7])
def test_every_rank_has_an_image_to_score_and_none_is_lost(written, world):
    shares = []
    for rank in range(world):
        module = make("voc", written / "voc", "test")
        module.trainer = SimpleNamespace(global_rank=rank, world_size=world)
        shares.append([scored.number for scored in module.test_dataloader()])
    assert set(itertools.chain(*shares)) == set(range(5))
    assert all(shares)


def test_only_what_a_network_sees_is_moved_to_a_device(written):
    data = make("voc", written / "voc", "test")
    scored = next(iter(data.test_dataloader()))
    moved = data.transfer_batch_to_device(scored, torch.device("meta"), 0)
    assert moved.image.pixels.is_meta
    assert not moved.truth.mask.is_meta


def test_the_split_that_predict_runs_over_can_be_the_training_images(written):
    data = make("voc", written / "voc", "predict", predict_split="train")
    assert [scored.image.name for scored in data.predict_dataloader()] == list(data.images("train").names)


def test_predict_says_which_list_its_split_is(written, caplog):
    with caplog.at_level(logging.INFO):
        make("voc", written / "voc", "predict", predict_split="test")
    assert "Predicted (data.predict_split=test): VOC 2012 val: " in caplog.text


@pytest.mark.parametrize(
    ("layout", "size"),
    [("voc", (512, 512)), ("coco_semantic", (448, 448)), ("ade20k", (208, 320)), ("endotect", (512, 640))],
)
def test_official_preprocessing_squashes_and_keeps_the_size_of_results(layout, size, written):
    data = make(layout, written / layout, "test", preprocessing="official")
    scored = next(iter(data.test_dataloader()))
    assert scored.image.pixels.shape[1:] == size
    assert scored.image.size == (64, 80)


def test_there_is_no_official_preprocessing_of_ones_own_images(written):
    with pytest.raises(ConfigError, match="LabelledImageFolder"):
        make("labelled_images", written / "labelled_images", preprocessing="official")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("there", [False, True])
def test_a_dataset_that_is_not_there_is_described(layout, there, tmp_path):
    root = tmp_path / "data"
    if there:
        (root / "something").mkdir(parents=True)
    with pytest.raises(DatasetNotFoundError) as error:
        make(layout, root, "fit")
    text = str(error.value)
    assert len(text.splitlines()) <= 8
    assert str(root) in text
    assert f"lightning_vos data demo {root} --layout {layout}" in text
    assert ("something" if there else "no such folder") in text


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_set_that_the_message_names_is_found(layout, tmp_path):
    write_images(tmp_path / FOLDERS[layout], ImageSettings(layout=layout, **(SMALL | {"train": 3, "val": 2})))
    assert len(make(layout, tmp_path, "fit").images("train").names) >= 2
    assert getattr(datamodules, MODULES[layout].__name__) is MODULES[layout]


@pytest.mark.parametrize(
    ("layout", "options"),
    [
        ("voc", {"batch_size": 0}),
        ("voc", {"workers": -1}),
        ("coco_semantic", {"validation_images": 0}),
        ("dfc2020", {"window": 0}),
        ("dfc2020", {"min_share": 1.5}),
        ("endotect", {"train_share": 1.0}),
        ("labelled_images", {"holdout": 1}),
    ],
)
def test_impossible_settings_are_refused(layout, options, tmp_path):
    with pytest.raises(ValueError, match="expected"):
        make(layout, tmp_path, **options)


def said(error):
    assert len(str(error.value).splitlines()) <= 8
    return str(error.value)


@pytest.mark.parametrize("layout", ["voc", "coco_semantic", "ade20k", "endotect", "labelled_images"])
def test_a_truncated_image_is_named(layout, copied):
    root = copied(layout)
    data = make(layout, root, "test")
    path = Path(data.images("test").paths[0])
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(FrameError) as error:
        list(data.test_dataloader())
    assert str(path) in said(error)


@pytest.mark.parametrize("layout", ["voc", "ade20k", "labelled_images", "dfc2020"])
def test_a_damaged_mask_is_named(layout, copied):
    data = make(layout, copied(layout), "test")
    path = Path(data.images("test").masks[0])
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(MaskError) as error:
        list(data.test_dataloader())
    assert str(path) in said(error)


@pytest.mark.parametrize(("layout", "what"), [("voc", "paths"), ("ade20k", "masks"), ("dfc2020", "paths")])
@pytest.mark.parametrize("workers", [0, 1])
def test_training_stops_at_a_broken_image_or_skips_and_counts_it(layout, what, workers, copied, recwarn):
    root = copied(layout)
    images = make(layout, root).images("train")
    path = Path(getattr(images, what)[0])
    path.write_bytes(path.read_bytes()[:60])
    count = len(images.names)

    def batches(**options):
        loader = make(layout, root, "fit", workers=workers, **options).train_dataloader()
        return loader.dataset, list(itertools.islice(loader, count))

    if not workers:
        with pytest.raises(UserError, match=path.name):
            batches()
    dataset, first = batches(skip_broken=True)
    assert dataset.reader.broken.tolist() == [True] + [False] * (count - 1)
    assert images.names[0] not in {name for batch in first for name in batch.names}
    if not workers:
        (warned,) = [str(warning.message) for warning in recwarn if "Broken" in str(warning.message)]
        assert f"1 of {count} images so far" in warned
        assert str(path) in warned
    _, again = batches(skip_broken=True)
    assert all(torch.equal(one.images, other.images) for one, other in zip(first, again, strict=True))


def test_nothing_is_skipped_that_is_scored_or_predicted(copied):
    data = make("voc", copied("voc"), "test", skip_broken=True)
    path = Path(data.images("test").paths[0])
    path.write_bytes(path.read_bytes()[:400])
    for loader in (data.test_dataloader(), data.predict_dataloader()):
        with pytest.raises(FrameError, match=path.name):
            list(loader)


@pytest.mark.parametrize(("layout", "value"), [("voc", 21), ("ade20k", 151), ("labelled_images", 5)])
def test_a_value_of_no_class_is_named(layout, value, copied):
    data = make(layout, copied(layout), "test")
    path = Path(data.images("test").masks[0])
    write_mask(path, np.full((64, 80), value, np.uint8))
    with pytest.raises(MaskError, match=rf"(?s){path.name}.*found {value}\n"):
        list(data.test_dataloader())


def test_a_mask_of_another_size_is_named(copied):
    data = make("voc", copied("voc"), "test")
    write_mask(Path(data.images("test").masks[0]), np.zeros((64, 81), np.uint8))
    with pytest.raises(MaskError, match="found 81x64, expected 80x64"):
        list(data.test_dataloader())


# VOC


def voc_list(root, name):
    return root / "VOC2012/ImageSets/Segmentation" / f"{name}.txt"


@pytest.mark.parametrize("place", ["VOC2012", "VOCdevkit/VOC2012", "."])
def test_voc_is_found_in_its_folders(place, written, tmp_path):
    shutil.copytree(written / "voc/VOC2012", tmp_path / place, dirs_exist_ok=True)
    assert len(make("voc", tmp_path).images("val").names) == 5


@pytest.mark.parametrize("file", ["trainaug", "train_aug_id", "trainaug_id"])
def test_lists_of_voc_have_several_spellings(file, copied):
    root = copied("voc")
    names = make("voc", root).images("train").names
    voc_list(root, "train_aug").rename(voc_list(root, file))
    assert make("voc", root).images("train").names == names
    assert make("voc", root, train_split=file).images("train").names == names


def test_lists_of_voc_may_name_paths_twice_in_any_order_without_a_last_newline(copied):
    root = copied("voc")
    lines = ["/JPEGImages/2007_000003.jpg /SegmentationClassAug/2007_000003.png", "2007_000001", "", "2007_000003"]
    voc_list(root, "train_aug").write_text("\n".join(lines))
    assert make("voc", root).images("train").names == ["2007_000003", "2007_000001"]


@pytest.mark.parametrize("name", ["../../secret", "..", "/etc/passwd", "a\\b"])
def test_a_list_of_voc_leads_nowhere_else(name, copied):
    root = copied("voc")
    voc_list(root, "val").write_text(f"2008_000001\n{name}\n")
    with pytest.raises(DatasetNotFoundError) as error:
        make("voc", root, "validate")
    assert "val.txt" in said(error)


@pytest.mark.parametrize(
    ("content", "words"),
    [("", "names no image"), ("2008_000001\n2008_999999\n", "2008_999999"), (None, "no list 'val'")],
)
def test_a_list_of_voc_that_cannot_be_used_is_named(content, words, copied):
    root = copied("voc")
    if content is None:
        voc_list(root, "val").unlink()
    else:
        voc_list(root, "val").write_text(content)
    with pytest.raises(DatasetNotFoundError) as error:
        make("voc", root, "validate")
    assert words in said(error)
    assert "val" in said(error)


def test_without_train_aug_it_is_said_where_it_comes_from(copied):
    root = copied("voc")
    voc_list(root, "train_aug").unlink()
    with pytest.raises(DatasetNotFoundError, match=r"write_train_aug makes it from SBD.*--data.train_split train"):
        make("voc", root, "fit")
    assert len(make("voc", root, "fit", train_split="train").images("train").names) == 5


def test_train_aug_has_the_masks_of_sbd_and_val_those_of_voc(written):
    data = make("voc", written / "voc", labels="masks")
    masks = {split: {Path(mask).parent.name for mask in data.images(split).masks} for split in ("train", "val")}
    assert masks == {"train": {"SegmentationClassAug"}, "val": {"SegmentationClass"}}
    assert 255 not in data.images("train").mask(0)


def test_a_list_without_public_truth_has_none(written):
    data = make("voc", written / "voc", "test", test_split="test")
    scored = list(data.test_dataloader())
    assert len(scored) == 2
    assert all(one.truth is None for one in scored)
    with pytest.raises(ConfigError, match="not public"):
        data.label_table("test")


def test_a_list_with_some_masks_only_is_not_complete(copied):
    root = copied("voc")
    for folder in ("SegmentationClass", "SegmentationClassAug"):
        (root / "VOC2012" / folder / "2008_000001.png").unlink()
    with pytest.raises(DatasetNotFoundError, match="2008_000001"):
        make("voc", root, "test")


@pytest.mark.parametrize("source", ["xml", "masks", "csv"])
def test_every_source_gives_voc_the_same_labels(source, written, tmp_path):
    expected = make("voc", written / "voc", labels="masks").label_table("train")
    write_labels(tmp_path / "labels.csv", expected)
    labels = tmp_path / "labels.csv" if source == "csv" else source
    found = make("voc", written / "voc", labels=labels).label_table("train")
    assert found.classes == expected.classes
    assert len(found.rows) == 10
    assert all(np.array_equal(found.rows[name], expected.rows[name]) for name in expected.rows)


XML = "<annotation>{}</annotation>"
CAT = "<object><name> cat </name><difficult>1</difficult><part><name>head</name></part></object>"
DOG = "<object><name>dog</name></object>"


@pytest.mark.parametrize(("difficult", "expected"), [(True, {"cat", "dog"}), (False, {"dog"})])
def test_difficult_objects_count_as_one_says(difficult, expected, copied):
    root = copied("voc")
    (root / "VOC2012/Annotations/2007_000000.xml").write_text(XML.format(CAT + DOG + DOG))
    table = make("voc", root, difficult=difficult).label_table("train")
    assert {table.classes[number] for number in np.flatnonzero(table.rows["2007_000000"])} == expected


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "cannot be read as XML"),
        ("<annotation><object>", "cannot be read as XML"),
        ("<html></html>", "found <html>"),
        (XML.format("<object><name>unicorn</name></object>"), "found 'unicorn'"),
        (XML.format("<object></object>"), "found ''"),
        (None, "no 2007_000000.xml"),
    ],
)
def test_an_xml_that_cannot_be_used_is_named(content, words, copied):
    root = copied("voc")
    path = root / "VOC2012/Annotations/2007_000000.xml"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(UserError) as error:
        make("voc", root, "fit")
    assert "2007_000000.xml" in said(error)
    assert words in said(error)


def test_background_and_ignored_pixels_are_no_classes(copied):
    root = copied("voc")
    data = make("voc", root, "test", labels="masks")
    mask = np.zeros((64, 80), np.uint8)
    mask[:30] = 255
    mask[40:, :5] = 20
    write_mask(Path(data.images("test").masks[0]), mask)
    scored = next(iter(data.test_dataloader()))
    assert torch.nonzero(scored.truth.labels).flatten().tolist() == [19]
    assert scored.truth.mask.unique().tolist() == [0, 20, 255]


def test_sbd_becomes_train_aug(copied, tmp_path):
    savemat = pytest.importorskip("scipy.io").savemat
    root, sbd = copied("voc"), tmp_path / "sbd"
    (sbd / "cls").mkdir(parents=True)
    masks = {}
    for name in make("voc", root).images("train").names:
        masks[name] = read_mask(root / "VOC2012/SegmentationClassAug" / f"{name}.png")
        savemat(sbd / "cls" / f"{name}.mat", {"GTcls": {"Segmentation": masks[name]}})
    names = list(masks)
    (sbd / "train.txt").write_text("\n".join(names[:6]))
    (sbd / "val.txt").write_text("\n".join([*names[6:], "2008_000001"]))  # of VOC val: left out
    shutil.rmtree(root / "VOC2012/SegmentationClassAug")
    voc_list(root, "train_aug").unlink()
    assert write_train_aug(root, sbd) == 10
    data = make("voc", root, labels="masks")
    assert list(data.images("train").names) == sorted(names)
    own = set(voc_list(root, "train").read_text().split())
    for number, name in enumerate(sorted(names)):
        mask = data.images("train").mask(number)
        assert (255 in mask) == (name in own)
        assert np.array_equal(mask[mask != 255], masks[name][mask != 255])
    (sbd / "cls" / f"{names[1]}.mat").write_bytes(b"damaged")
    with pytest.raises(MaskError, match=f"{names[1]}.mat"):
        write_train_aug(root, sbd)
    (sbd / "cls" / f"{names[1]}.mat").unlink()
    with pytest.raises(DatasetNotFoundError, match=names[1]):
        write_train_aug(root, sbd)
    with pytest.raises(DatasetNotFoundError, match="SBD"):
        write_train_aug(root, tmp_path)


@pytest.mark.skipif(not (REAL / "VOCdevkit").is_dir(), reason=f"no real samples: {REAL} does not exist")
def test_the_real_sample_of_voc():
    lists = sorted(path.stem for path in (REAL / "VOCdevkit/VOC2012/ImageSets/Segmentation").glob("*.txt"))
    data = VOC(
        REAL, batch_size=2, workers=0, labels="masks", train_split=lists[0], val_split=lists[0], test_split=lists[0]
    )
    data.setup("fit")
    data.setup("test")
    (batch,) = drawn(data, 1)
    assert batch.images.shape == (2, 3, 448, 448)
    assert (batch.labels.sum(1) > 0).all()
    for scored in data.test_dataloader():
        assert 255 in scored.truth.mask
        values = set(scored.truth.mask.unique().tolist()) - {0, 255}
        assert {int(number) + 1 for number in torch.nonzero(scored.truth.labels)} == values


# COCO


def coco_json(root, part="train"):
    return root / f"coco/annotations/instances_{part}2014.json"


def test_coco_leaves_out_images_without_labels_to_train_on_and_reads_grey_ones(written):
    data = make("coco_semantic", written / "coco_semantic", "fit")
    names = data.images("train").names
    assert len(names) == 9
    assert "COCO_train2014_000000000002" not in names
    grey = data.images("train").read(0)
    assert Image.open(data.images("train").paths[0]).mode == "L"
    assert grey.shape == (64, 80, 3)


def test_coco_draws_small_instances_over_large_ones_and_crowds_below(copied):
    root = copied("coco_semantic")
    content = json.loads(coco_json(root, "val").read_text())
    square = lambda side: [[5.0, 5.0, 5.0 + side, 5.0, 5.0 + side, 5.0 + side, 5.0, 5.0 + side]]  # noqa: E731
    runs = {"size": [64, 80], "counts": [0, 64 * 80]}
    ids = sorted(category["id"] for category in content["categories"])
    image = content["images"][0]["id"]
    content["annotations"] = [
        {"image_id": image, "category_id": ids[4], "area": 100, "iscrowd": 0, "segmentation": square(10)},
        {"image_id": image, "category_id": ids[79], "area": 900, "iscrowd": 0, "segmentation": square(30)},
        {"image_id": image, "category_id": ids[0], "area": 1, "iscrowd": 1, "segmentation": runs},
    ]
    coco_json(root, "val").write_text(json.dumps(content))
    truth = next(iter(make("coco_semantic", root, "test").test_dataloader())).truth
    assert [truth.mask[row, row].item() for row in (2, 10, 25, 40)] == [1, 5, 80, 1]
    assert torch.nonzero(truth.labels).flatten().tolist() == [0, 4, 79]


def test_coco_takes_masks_that_are_there(copied):
    root = copied("coco_semantic")
    for name in make("coco_semantic", root).images("test").names:
        write_mask(root / "coco/SegmentationClass/val2014" / f"{name}.png", np.full((64, 80), 80, np.uint8))
    truth = next(iter(make("coco_semantic", root, "test").test_dataloader())).truth
    assert truth.mask.unique().tolist() == [80]
    write_mask(root / "coco/SegmentationClass/val2014" / f"{name}.png", np.full((64, 80), 90, np.uint8))
    with pytest.raises(MaskError, match=r"(?s)found 90\n.*0 to 80"):
        list(make("coco_semantic", root, "test").test_dataloader())


def test_coco_validates_with_some_of_its_images(written):
    data = make("coco_semantic", written / "coco_semantic", validation_images=3)
    names = [name[-1] for name in data.images("val").names]
    assert names == ["1", "3", "5"]
    assert len(data.images("test").names) == 5


def test_coco_trains_on_the_images_of_a_csv(written, tmp_path):
    source = tmp_path / "labels.csv"
    write_labels(source, make("coco_semantic", written / "coco_semantic").label_table("train"))
    one, other = (make("coco_semantic", written / "coco_semantic", **options) for options in ({}, {"labels": source}))
    assert one.images("train").names == other.images("train").names
    assert np.array_equal(one.images("train").table, other.images("train").table)


def edit(change):
    def damage(content):
        change(content)
        return json.dumps(content)

    return damage


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda content: "", "cannot be read as JSON"),
        (lambda content: "[1, 2]", "expected an object"),
        (edit(lambda content: content.pop("images")), "no images"),
        (edit(lambda content: content.pop("annotations")), "has no annotations"),
        (edit(lambda content: content["categories"].pop()), "found 79"),
        (edit(lambda content: content["categories"][0].update(name="cats")), "cats"),
        (edit(lambda content: content["annotations"][0].update(category_id=12345)), "annotations[0]"),
        (edit(lambda content: content["annotations"][0].update(image_id=12345)), "annotations[0]"),
        (edit(lambda content: content["annotations"][0].pop("area")), "no area"),
        (edit(lambda content: content["images"][1].update(file_name="../../secret.jpg")), "../../secret.jpg"),
        (edit(lambda content: content["images"][1].update(file_name="absent.jpg")), "absent"),
        (edit(lambda content: content["images"][1].update(id=1)), "second time"),
        (edit(lambda content: content.update(annotations=[])), "no image with a label"),
    ],
)
def test_a_json_that_cannot_be_used_is_named(damage, words, copied):
    root = copied("coco_semantic")
    path = coco_json(root)
    content = json.loads(path.read_text())
    if "absent" in words:
        content["annotations"].append(content["annotations"][0] | {"image_id": content["images"][1]["id"]})
    path.write_text(damage(content))
    with pytest.raises(UserError) as error:
        make("coco_semantic", root, "fit")
    assert path.name in said(error)
    assert words in said(error)


@pytest.mark.skipif(not (REAL / "coco").is_dir(), reason=f"no real samples: {REAL} does not exist")
def test_the_real_sample_of_coco(tmp_path):
    (annotations,) = (REAL / "coco").rglob("*.json")
    (image,) = (REAL / "coco").rglob("*.jpg")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "val2017").mkdir()
    shutil.copy(annotations, tmp_path / "annotations/instances_val2017.json")
    shutil.copy(image, tmp_path / "val2017")
    data = COCOSemantic(tmp_path, year=2017, workers=0)
    data.setup("test")
    (scored,) = data.test_dataloader()
    shown = {data.class_names[int(number)] for number in torch.nonzero(scored.truth.labels)}
    assert shown == {"person", "sports ball"}
    assert set(scored.truth.mask.unique().tolist()) == {0, *(data.class_set.names.index(name) for name in shown)}


# The others


def test_ade20k_has_other_as_a_class_if_asked(written):
    plain, official = (make("ade20k", written / "ade20k", "test", classes=classes) for classes in (150, 151))
    assert (len(plain.class_names), len(official.class_names)) == (150, 151)
    one, other = (next(iter(data.test_dataloader())).truth for data in (plain, official))
    assert torch.equal(torch.cat([torch.ones(1), one.labels]), other.labels)
    assert (plain.class_set.ignored, official.class_set.names[0]) == (0, "other")


def test_ade20k_reads_labels_from_a_csv(copied, tmp_path):
    root = copied("ade20k")
    expected = make("ade20k", root).label_table("train")
    write_labels(tmp_path / "labels.csv", expected)
    for path in (root / "ADEChallengeData2016/annotations/training").iterdir():
        path.write_bytes(b"damaged")
    found = make("ade20k", root, labels=tmp_path / "labels.csv").label_table("train")
    assert all(np.array_equal(found.rows[name], labels) for name, labels in expected.rows.items())


def test_labels_of_a_tile_are_those_of_its_window(copied):
    root = copied("dfc2020")
    data = make("dfc2020", root, window=32, min_share=0.1)
    images = data.images("train")
    source = np.full((64, 80), 1, np.uint8)
    source[:, 40:] = 10
    source[:8] = 8  # snow, which is no class
    Image.fromarray(source).save(images.masks[0])
    found = {tuple(np.flatnonzero(images.draw(0, np.random.default_rng(seed))[1])) for seed in range(60)}
    assert found == {(0,), (7,), (0, 7)}
    for seed in range(20):
        rng = np.random.default_rng(seed)
        pixels, labels = images.draw(0, rng)
        start = np.random.default_rng(seed).integers((32, 48), endpoint=True)
        window = np.s_[start[0] : start[0] + 32, start[1] : start[1] + 32]
        assert np.array_equal(pixels, images.read(0)[window])
        shares = [(source[window] == kind).mean() for kind in (1, 10)]
        assert labels[[0, 7]].tolist() == [share >= 0.1 for share in shares]


def test_classes_of_the_contest_are_numbered_anew(copied):
    images = make("dfc2020", copied("dfc2020")).images("val")
    source = np.arange(11, dtype=np.uint8).repeat(8)[None, :80].repeat(64, 0)
    Image.fromarray(source).save(images.masks[0])
    expected = [255, 0, 1, 255, 2, 3, 4, 5, 255, 6]
    assert images.mask(0)[0, ::8].tolist() == expected
    np.save(Path(images.masks[1]).with_suffix(".npy"), source)  # preferred to the GeoTIFF
    assert make("dfc2020", Path(images.masks[0]).parents[3]).images("val").mask(1)[0, ::8].tolist() == expected


def test_both_sensors_are_scaled_as_documented(copied):
    root = copied("dfc2020")
    images = make("dfc2020", root, multimodal=True).images("val")
    optical = np.linspace(0, 20_000, 13 * 64 * 80).reshape(13, 64, 80).astype(np.uint16)
    radar = np.full((64, 80, 2), (-30.0, -5.0), np.float32)
    radar[0, 0] = np.nan
    np.save(images.paths[0], optical)
    np.save(images.radar[0], radar)  # bands last are taken too
    tile = images.read(0)
    assert (tile.shape, tile.dtype) == ((64, 80, 15), np.float32)
    assert np.allclose(tile[..., :13], optical.transpose(1, 2, 0).clip(0, 10_000) / 10_000)
    assert np.allclose(tile[1:, :, 13:], (0.0, 0.8))
    assert tile[0, 0, 13:].tolist() == [1.0, 1.0]
    batch = drawn(make("dfc2020", root, "fit", multimodal=True), 1)[0]
    assert batch.images.shape == (2, 15, 48, 48)


@pytest.mark.parametrize(
    ("raster", "words"),
    [
        (np.zeros((12, 64, 80), np.uint16), "expected numbers of shape (13, H, W)"),
        (np.zeros((64, 80), np.uint16), "of shape (64, 80)"),
        (np.zeros((13, 32, 40), np.uint16), "less than a window of 48"),
        (None, "cannot be read"),
    ],
)
def test_a_raster_that_cannot_be_used_is_named(raster, words, copied):
    data = make("dfc2020", copied("dfc2020"), "fit")
    for path in data.images("train").paths:
        Path(path).write_bytes(b"damaged") if raster is None else np.save(path, raster)
    with pytest.raises(FrameError) as error:
        drawn(data)
    assert words in said(error)
    assert ".npy" in said(error)


def test_pickled_rasters_are_not_loaded(copied):
    data = make("dfc2020", copied("dfc2020"), "fit")
    for path in data.images("train").paths:
        np.save(path, np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(FrameError, match="allow_pickle"):
        drawn(data)


def test_how_geotiffs_are_converted_is_said(copied):
    root = copied("dfc2020")
    for path in root.rglob("*_s2_*.npy"):
        path.rename(path.with_suffix(".tif"))
    with pytest.raises(FrameError) as error:
        drawn(make("dfc2020", root, "fit"))
    assert "tifffile" in said(error)
    assert str(root / "DFC2020") in said(error)


def test_a_tile_without_its_other_files_is_named(copied):
    root = copied("dfc2020")
    next(root.rglob("*test_s1_0_p3.npy")).unlink()
    assert len(make("dfc2020", root).images("train").names) == 10
    with pytest.raises(DatasetNotFoundError, match="ROIs0000_test_s2_0_p3"):
        make("dfc2020", root, multimodal=True).images("train")
    next(root.rglob("*test_dfc_0_p4.tif")).unlink()
    with pytest.raises(DatasetNotFoundError, match="ROIs0000_test_s2_0_p4"):
        make("dfc2020", root).images("train")


def test_endotect_is_split_once_and_one_class_an_image(written):
    data = make("endotect", written / "endotect")
    train, val = data.images("train"), data.images("val")
    assert (len(train.names), len(val.names)) == (10, 5)  # 70 % of 15, rounded to even
    assert not set(train.names) & set(val.names)
    assert (train.table.sum(1) == 1).all()
    for path, labels in zip(train.paths, train.table, strict=True):
        assert data.class_names[labels.argmax()] == Path(path).parent.name
    assert data.class_names == tuple(sorted(data.class_names))
    other = make("endotect", written / "endotect", split_seed=1)
    assert other.images("train").names != train.names


def test_only_polyps_have_masks(written):
    data = make("endotect", written / "endotect", train_share=0.1)
    images = data.images("test")
    has_mask = [images.mask(number) is not None for number in range(len(images.names))]
    assert has_mask == [Path(path).parent.name == "polyps" for path in images.paths]
    assert any(has_mask)


def test_label_maps_know_polyps_by_the_name_of_their_folder(written):
    """Else the label maps of a network of all classes would show background alone."""
    data = make("endotect", written / "endotect")
    values = dict(zip(data.class_names, pixel_values(data.class_set, data.class_names).classes, strict=True))
    assert (written / "endotect/endotect/labeled-images/lower-gi-tract/pathological-findings/polyps").is_dir()
    assert values == {name: int(name == "polyps") for name in data.class_names}
    assert len(values) > 2


# Tables of labels

PAIRS = "image,label\na.jpg,dog\nb,cat\na.jpg,cat\nc,\n"
COLUMNS = "image,dog,cat\na,1,1\nb,0,1\nc,0,0\n"


def pictures(root, names="abc"):
    (root / "images").mkdir(parents=True)
    for name in names:
        Image.fromarray(np.zeros((50, 50, 3), np.uint8)).save(root / "images" / f"{name}.jpg")
    return root


@pytest.mark.parametrize(("text", "classes"), [(PAIRS, ("cat", "dog")), (COLUMNS, ("dog", "cat"))])
def test_both_forms_of_a_table(text, classes, tmp_path):
    root = pictures(tmp_path)
    (root / "labels.csv").write_text("\ufeff" + text)
    data = make("labelled_images", root, holdout=2)
    assert data.class_names == classes
    assert data.class_set.names == ("background", *classes)
    shown = {
        name: {classes[number] for number in np.flatnonzero(labels)}
        for split in ("train", "val")
        for name, labels in data.label_table(split).rows.items()
    }
    assert shown == {"a": {"cat", "dog"}, "b": {"cat"}, "c": set()}
    assert list(data.images("val").names) == ["b"]


def test_a_table_comes_back_as_it_was_written(tmp_path):
    table = LabelTable(("one, with a comma", "two"), {"x": np.array([1, 0], np.uint8), "y": np.array([0, 0], np.uint8)})
    write_labels(tmp_path / "new/labels.csv", table)
    found = read_labels(tmp_path / "new/labels.csv")
    assert found.classes == table.classes
    assert {name: labels.tolist() for name, labels in found.rows.items()} == {"x": [1, 0], "y": [0, 0]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "0 lines"),
        ("image,label\n", "1 lines"),
        ("picture,label\na,cat\n", "line 1"),
        ("image\na\n", "line 1"),
        ("image,cat,cat\na,1,1\n", "line 1"),
        ("image,label\na,cat,dog\n", "line 2"),
        ("image,label\n\n,cat\n", "line 3"),
        ("image,label\na,\nb,\n", "no label in any row"),
        ("image,cat,dog\na,1,2\n", "'1,2'"),
        ("image,cat,dog\na,1,0\na,1,0\n", "second time"),
        ("image,label\n../a,cat\nb,cat\n", "'../a'"),
        ("image,label\na,cat\nz,cat\n", "missing: z"),
        ("image,label\na,cat\na.jpg,cat\n", "two suffixes"),
        ("image,label\na,cat\n", "names one image"),
        (b"\xff\xfe\x00\x01", "UTF-8"),
    ],
)
def test_a_table_that_cannot_be_used_is_named(text, words, tmp_path):
    root = pictures(tmp_path)
    path = root / "labels.csv"
    path.write_bytes(text) if isinstance(text, bytes) else path.write_text(text)
    with pytest.raises(DatasetNotFoundError) as error:
        make("labelled_images", root, "fit")
    assert words in said(error)
    assert str(path) in said(error)


@pytest.mark.parametrize("name", ["cls_labels.npy", "labels.pkl"])
def test_pickles_are_not_loaded(name, written, tmp_path):
    path = tmp_path / name
    np.save(tmp_path / "labels.npy", {"2007_000001": np.ones(20)}, allow_pickle=True)
    (tmp_path / "labels.npy").rename(path)
    with pytest.raises(ConfigError) as error:
        make("voc", written / "voc", "fit", labels=path)
    assert "lightning_vos data prepare" in said(error)
    assert str(path) in said(error)


def test_a_table_of_another_dataset_is_refused(tmp_path):
    path = tmp_path / "labels.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("image", "label"), ("a", "cat"), ("b", "unicorn")])
    with pytest.raises(ConfigError, match="found unicorn"):
        labels_of(path, ["a", "b"], ["cat", "dog"])
    path.write_text("image,label\na,cat\n")
    assert labels_of(path, ["a"], ["dog", "cat"]).tolist() == [[0, 1]]
    assert labels_of(path, ["x", "y"], ["dog", "cat"], required=False) is None
    for names in (["a", "b"], ["x", "y"]):
        with pytest.raises(DatasetNotFoundError, match="No labels for"):
            labels_of(path, names, ["dog", "cat"], required=names == ["x", "y"])


def test_masks_of_ones_own_images_may_be_missing(copied):
    root = copied("labelled_images")
    shutil.rmtree(root / "masks")
    scored = list(make("labelled_images", root, "test").test_dataloader())
    assert len(scored) == 3
    assert all(one.truth.mask is None and one.truth.labels.any() for one in scored)
