from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Literal
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from datamodules.base import Split
from datamodules.image_transforms import OfficialTransform
from datamodules.label_files import labels_of
from datamodules.labelled_images import ImageDataModule, ImageSet, found_in, image_files, listed_files, plain_names
from lightning_vos.errors import ConfigError, DatasetNotFoundError, MaskError
from lightning_vos.evaluation.semantic import CLASS_SETS, ClassSet
from lightning_vos.io.masks import read_mask, write_mask
from lightning_vos.io.writing import written_beside

_LISTS = Path("ImageSets/Segmentation")
_PLAIN, _AUGMENTED = "SegmentationClass", "SegmentationClassAug"
_SPELLINGS = {"train_aug": "trainaug", "trainaug": "train_aug"}


class VOC(ImageDataModule):
    """PASCAL VOC 2012, segmentation: 20 classes and background.

    A list is a file of `ImageSets/Segmentation` with a name a line, or the paths of an image and its mask; `train_aug`
    is also found as `trainaug`, and any list with `_id` after its name. Of `train` and `val` the masks are those of
    `SegmentationClass`, of lists with more images those of `SegmentationClassAug`; 255 is not scored. `train_aug`
    (10,582 images: VOC train and SBD without VOC val) does not come with the dataset: `write_train_aug` makes it.

    The official code trains on 70 % of `trainval`; it brings images to 512 x 512, takes them as BGR, shifts and turns
    30 % of them, and flips them both ways (`preprocessing`).

    Args:
        root: The VOC2012 folder, VOCdevkit, or the folder that holds one of them.
        train_split: The list to train on.
        val_split: The list to validate on during training.
        test_split: The list to test on.
        labels: What says which classes an image shows: "xml", the objects of `Annotations`, "masks", or a CSV, see
            `datamodules.label_files.read_labels`.
        difficult: Whether objects that their XML calls difficult count, as they do in the official code.
        **parts: What every dataset of images takes, see `ImageDataModule`.
    """

    OFFICIAL: ClassVar = OfficialTransform((512, 512), "bgr", affine=0.3, flip=0.5)

    def __init__(
        self,
        root: Path,
        train_split: str = "train_aug",
        val_split: str = "val",
        test_split: str = "val",
        labels: Literal["xml", "masks"] | Path = "xml",
        difficult: bool = True,
        **parts: Any,
    ) -> None:
        super().__init__(root, **parts)
        self.splits: dict[Split, str] = {"train": train_split, "val": val_split, "test": test_split}
        self.label_source = labels
        self.difficult = difficult

    @property
    def class_names(self) -> tuple[str, ...]:
        """The 20 classes."""
        return self.class_set.names[1:]

    @property
    def class_set(self) -> ClassSet:
        """0 is background, 1 to 20 are the classes, 255 is not scored."""
        return CLASS_SETS["voc"]

    def describe(self, split: Split) -> tuple[str, Path]:
        """For example "VOC 2012 train_aug" and the VOC2012 folder."""
        return f"VOC 2012 {self.splits[split]}", self.folder

    @cached_property
    def folder(self) -> Path:
        """The VOC2012 folder itself."""
        for place in (".", "VOC2012", "VOCdevkit/VOC2012"):
            if (self.root / place / "JPEGImages").is_dir() and (self.root / place / _LISTS).is_dir():
                return self.root / place
        raise DatasetNotFoundError(
            f"VOC 2012 is not at data.root={self.root}: no JPEGImages and {_LISTS} there or in its VOC2012\n"
            f"  found there: {found_in(self.root)}\n"
            f"  expected: VOC2012/JPEGImages/*.jpg, VOC2012/Annotations/*.xml, VOC2012/{_PLAIN}/*.png\n"
            f"            VOC2012/{_LISTS}/<split>.txt\n"
            "Get it from http://host.robots.ox.ac.uk/pascal/VOC/voc2012 and name its folder with --data.root FOLDER,\n"
            "or write a small synthetic set in this layout, then run the same command again:\n"
            f"  lightning_vos data demo {self.root} --layout voc"
        )

    def images(self, split: Split) -> ImageSet:
        """The images on the list of a split.

        Raises:
            ConfigError: Labels are of other classes than VOC's, or in a file that is not loaded.
            DatasetNotFoundError: The list, an image on it, or its labels are not there, or some of its masks.
        """
        source = _list(self.folder, self.splits[split])
        names = listed(source)
        paths = listed_files(
            names, image_files(self.folder / "JPEGImages"), self.folder / "JPEGImages", source, "images"
        )
        trains_on_labels = split == "train" and self.train_masks is None
        needs_masks = self.reads_masks(split) or (trains_on_labels and self.label_source == "masks")
        masks = self._masks(names, source) if needs_masks else None
        table = self._table(names, source, required=trains_on_labels)
        if trains_on_labels and table is None and masks is None:
            raise self._no_labels(source, f"no masks of {source} in {_PLAIN} or {_AUGMENTED} of {self.folder}")
        return ImageSet(names, paths, self.class_set, 1, table, masks)

    def _masks(self, names: Sequence[str], source: Path) -> list[str] | None:
        """The masks of a list, all from one folder; None where they are not public."""
        found = {
            name: image_files(self.folder / name) for name in (_PLAIN, _AUGMENTED) if (self.folder / name).is_dir()
        }
        for there in found.values():
            if all(name in there for name in names):
                return [there[name] for name in names]
        nearest = max(found, key=lambda folder: sum(name in found[folder] for name in names), default=None)
        if nearest is None or not any(name in found[nearest] for name in names):
            return None
        return listed_files(names, found[nearest], self.folder / nearest, source, "masks")

    def _table(self, names: Sequence[str], source: Path, *, required: bool) -> NDArray[np.uint8] | None:
        """The labels of a list; None where they are read off masks, or are not public."""
        if self.label_source == "masks":
            return None
        if isinstance(self.label_source, Path):
            return labels_of(self.label_source, names, self.class_names, required=required)
        annotations = self.folder / "Annotations"
        files = [annotations / f"{name}.xml" for name in names]
        if not required and not any(file.is_file() for file in files):
            return None
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise self._no_labels(
                source, f"no {', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''} in {annotations}"
            )
        table = np.zeros((len(names), len(self.class_names)), np.uint8)
        for row, file in zip(table, files, strict=True):
            row[list(self._objects(file))] = 1
        return table

    def _objects(self, file: Path) -> Iterator[int]:
        """The classes of the objects in an XML, counted from 0."""
        try:
            annotation = ElementTree.parse(file).getroot()
        except (OSError, ElementTree.ParseError) as error:
            raise DatasetNotFoundError(
                f"{file} cannot be read as XML: {error}\n"
                "Get the file of the dataset again, or take labels from elsewhere: --data.labels masks, or a CSV."
            ) from error
        if annotation.tag != "annotation":
            raise DatasetNotFoundError(
                f"{file} is no annotation of PASCAL VOC\n  found <{annotation.tag}>, expected <annotation>.\n"
                "Get the file of the dataset again."
            )
        for item in annotation.iterfind("object"):
            name = item.findtext("name", "").strip()
            if name not in self.class_names:
                raise ConfigError(
                    f"{file} names an object of no class of PASCAL VOC\n"
                    f"  found {name!r}, expected one of {', '.join(self.class_names[:4])}, ...\n"
                    "Rename it, or read the images with datamodules.LabelledImageFolder, which takes any classes."
                )
            if self.difficult or item.findtext("difficult", "0").strip() != "1":
                yield self.class_names.index(name)

    def _no_labels(self, source: Path, found: str) -> DatasetNotFoundError:
        return DatasetNotFoundError(
            f"No labels of the images of {source} (data.labels={self.label_source})\n"
            f"  found {found}\n"
            "Say where labels come from: --data.labels xml (Annotations/*.xml, part of the dataset), masks, or a CSV\n"
            'with the lines "image,label"; or train on a list that has them: --data.train_split train.'
        )


def listed(source: Path) -> list[str]:
    """The images of a list, each once: a name a line, or the paths of the image and its mask.

    Raises:
        DatasetNotFoundError: The list cannot be read or names no image, or something that is none.
    """
    try:
        lines = source.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetNotFoundError(
            f"{source} cannot be read as text: {error}\nExpected one image name a line."
        ) from error
    first = [line.split()[0] for line in lines if line.strip()]
    # "/JPEGImages/2007_000032.jpg /SegmentationClassAug/2007_000032.png", as in the lists of PSA
    paired = [PurePosixPath(name) for name in first]
    return plain_names(source, [path.stem if path.parent.name == "JPEGImages" else str(path) for path in paired])


def write_train_aug(root: Path, sbd: Path) -> int:
    """Make `train_aug` from SBD: its list, and its masks in `SegmentationClassAug`, which label no border as 255.

    The images are those of VOC train and of both lists of SBD, without those of VOC val. Masks are VOC's own where it
    has them. The list is written last: where it is, all masks are.

    Args:
        root: What `VOC` takes.
        sbd: The `dataset` folder of SBD (benchmark_RELEASE), with `cls/*.mat`, `train.txt` and `val.txt`.

    Returns:
        The number of images: 10,582 of the whole datasets.

    Raises:
        DatasetNotFoundError: One of the datasets, a list or a file is not there.
        MaskError: A `.mat` holds no label map.
    """
    voc = VOC(root).folder
    for file in (sbd / "cls", sbd / "train.txt", sbd / "val.txt"):
        if not file.exists():
            raise DatasetNotFoundError(
                f"SBD is not in {sbd}: no {file.name}\n"
                f"  found there: {found_in(sbd)}\n"
                "  expected: cls/*.mat, train.txt, val.txt, which are in benchmark_RELEASE/dataset\n"
                "Get it from http://home.bharathh.info/pubs/codes/SBD and name that folder."
            )
    train, val = (listed(_list(voc, name)) for name in ("train", "val"))
    names = sorted({*train, *listed(sbd / "train.txt"), *listed(sbd / "val.txt")} - set(val))
    own, labelled = image_files(voc / _PLAIN), {path.stem: os.fspath(path) for path in (sbd / "cls").glob("*.mat")}
    paths = listed_files(names, labelled | own, sbd / "cls", sbd / "train.txt", "masks")
    for name, path in zip(names, paths, strict=True):
        mask = _read_mat(Path(path)) if path.endswith(".mat") else read_mask(Path(path))
        write_mask(voc / _AUGMENTED / f"{name}.png", mask)
    with written_beside(voc / _LISTS / "train_aug.txt") as temporary:
        temporary.write_text("".join(f"{name}\n" for name in names))
    return len(names)


def _read_mat(path: Path) -> NDArray[np.uint8]:
    """The (H, W) label map of an SBD file."""
    # SciPy comes with albumentations.
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        mask = loadmat(path)["GTcls"]["Segmentation"][0, 0]
    except (OSError, ValueError, TypeError, LookupError, NotImplementedError, zlib.error, MatReadError) as error:
        raise MaskError(
            f"{path} is no label map of SBD: {error!r}\n  expected GTcls.Segmentation\nCopy it again."
        ) from error
    if mask.ndim != 2 or mask.dtype != np.uint8 or mask.max(initial=0) >= len(CLASS_SETS["voc"].names):
        raise MaskError(
            f"{path} is no label map of SBD\n"
            f"  found {mask.dtype} of shape {mask.shape}, up to {mask.max(initial=0)}; expected (H, W) uint8, 0 to 20\n"
            "Copy it again."
        )
    return np.ascontiguousarray(mask)


def _list(folder: Path, split: str) -> Path:
    """The file of a list."""
    lists = folder / _LISTS
    spelled = [split, _SPELLINGS[split]] if split in _SPELLINGS else [split]
    for name in [*spelled, *(f"{name}_id" for name in spelled)]:
        if Path(name).name == name and (lists / f"{name}.txt").is_file():
            return lists / f"{name}.txt"
    there = ", ".join(sorted(path.stem for path in lists.glob("*.txt"))) or "none"
    augmented = (
        "\ntrain_aug is not part of VOC: datamodules.voc.write_train_aug makes it from SBD. To train without it:"
        " --data.train_split train"
    )
    raise DatasetNotFoundError(
        f"VOC 2012 in {folder} has no list {split!r}: there is no {lists / split}.txt\n"
        f"  lists there: {there}\n"
        "Name one of them (data.train_split, data.val_split, data.test_split), or add this one."
        f"{augmented if split in _SPELLINGS else ''}"
    )
