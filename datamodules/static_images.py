"""Images with the masks of their objects: clips to pre-train on, and pseudo-videos to score."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datamodules.base import Split, VOSDataModule
from datamodules.coco import CocoImages, InstanceRules, find_coco, read_coco
from datamodules.labelled_images import found_in, image_files, listed_files
from datamodules.readers import SequenceFiles, masks_of
from datamodules.transforms import MEAN_COLOUR, ClipAugmentation, StillTransform
from datamodules.voc import listed
from lightning_vos.errors import ConfigError, DatasetNotFoundError, FrameError, MaskError
from lightning_vos.evaluation.protocols import VOID, appearing_plan
from lightning_vos.io.frames import FRAME_SUFFIXES, frame_size, list_frames, read_frame, to_tensor
from lightning_vos.io.masks import VOC_PALETTE, read_mask, read_palette
from lightning_vos.structures import ScoredVideo, Video

if TYPE_CHECKING:
    from torch import Tensor

Layout = Literal["folders", "side_by_side", "voc", "coco"]

_IMAGES, _MASKS, _VOC_MASKS, _VOC_LISTS = "JPEGImages", "Annotations", "SegmentationObject", "ImageSets/Segmentation"
_TREES: dict[Layout, str] = {
    "folders": f"{_IMAGES}/*.jpg, {_MASKS}/*.png",
    "side_by_side": "*.jpg, *.png of the same names, or folders of such",
    "voc": f"(VOC2012/){_IMAGES}/*.jpg, {_VOC_MASKS}/*.png, {_VOC_LISTS}/*.txt",
    "coco": "annotations/instances_<split>.json, <split>/*.jpg",
}
_VIDEO_LENGTH = 8  # frames of a pseudo-video
_PROBED = 5  # masks of a set that are looked at before anything is trained on it
_SIDES_PROBED = 5  # folders of a folder that are looked at to see whether it is a set with classes
_NAMED = 12  # sets in the line that says what was found
_GREYS = 30  # label maps of a few images have no more ids, while soft edges have more grey values
_TRANSFORM = StillTransform()


@dataclass(frozen=True)
class StillSet:
    """A set of still images, and what cannot be seen from its files.

    Attributes:
        name: Its folder below the folder of the sets.
        layout: "folders": `JPEGImages` and `Annotations`. "side_by_side": each PNG beside its JPEG, in the folder or
            in folders of it (FSS). "voc": VOC2012 or the VOCdevkit that holds it, with `SegmentationObject`. "coco":
            `annotations/instances_<split>.json`. The first that fits if not given.
        masks: "indexed": the value of a pixel is the id of its object, 255 is background. "binary": one object, of the
            pixels from 128 of 255 on. If not given, binary side by side, else indexed.
        split: The list of VOC, trainval if not given; the split of COCO, if not given train2017 or the only one there.
        repeat: How often its images count: a clip is drawn uniformly from the images of all sets, each repeated as
            often.
    """

    name: str
    layout: Layout | None = None
    masks: Literal["indexed", "binary"] | None = None
    split: str | None = None
    repeat: int = 1

    def __str__(self) -> str:
        """The name and what is not as in a set of label maps in `Annotations`."""
        kind = {"folders": "", "side_by_side": " side by side", "voc": " VOC", "coco": " COCO"}[
            self.layout or "folders"
        ]
        masks = f" {self.masks}" if self.masks and (self.layout, self.masks) != ("folders", "indexed") else ""
        split = f" {self.split}" if self.split else ""
        return f"{self.name}{kind}{masks}{split}" + (f" x{self.repeat}" if self.repeat > 1 else "")


class _Motion(NamedTuple):
    """Where an image has moved to by the end of its pseudo-video."""

    degrees: float
    scale: float
    right: float  # share of the width
    down: float  # share of the height

    @classmethod
    def of(cls, number: int) -> _Motion:
        """The motion of the `number`-th video, the same in every run."""
        rng = np.random.default_rng(number)
        return cls(rng.uniform(-20, 20), rng.uniform(0.9, 1.1), rng.uniform(-0.1, 0.1), rng.uniform(-0.1, 0.1))

    def apply(self, pixels: NDArray[np.uint8], time: int, *, is_mask: bool) -> NDArray[np.uint8]:
        """The (H, W, ...) pixels at a time: images bilinear over the mean colour, masks nearest over background."""
        import cv2

        height, width = pixels.shape[:2]
        share = time / (_VIDEO_LENGTH - 1)
        matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), self.degrees * share, self.scale**share)
        matrix[:, 2] += share * self.right * width, share * self.down * height
        method, fill = (cv2.INTER_NEAREST, (0,)) if is_mask else (cv2.INTER_LINEAR, MEAN_COLOUR)
        return np.asarray(cv2.warpAffine(pixels, matrix, (width, height), flags=method, borderValue=fill), np.uint8)


class _MovedImage(Sequence["Tensor"]):
    """The frames of a pseudo-video, (3, H, W) float32 RGB in [0, 1]; the image is read with the first."""

    def __init__(self, path: Path, motion: _Motion) -> None:
        self.path = path
        self.motion = motion

    @cached_property
    def _image(self) -> NDArray[np.uint8]:
        return read_frame(self.path)

    def __len__(self) -> int:
        return _VIDEO_LENGTH

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | Sequence[Tensor]:
        times = range(_VIDEO_LENGTH)[index]
        if isinstance(times, range):
            return [self[time] for time in times]
        return to_tensor(self.motion.apply(self._image, times, is_mask=False))


class _MovedTruth:
    """The mask of an image, moved with it; all its objects are scored in all frames but the first and the last."""

    def __init__(self, labels: NDArray[np.uint8], motion: _Motion) -> None:
        self.labels = labels
        self.motion = motion
        self.plan = appearing_plan(range(_VIDEO_LENGTH))

    def read(self, frame: int) -> NDArray[np.uint8]:
        """The (H, W) label map of a frame."""
        return self.motion.apply(self.labels, frame, is_mask=True)


@dataclass(frozen=True)
class StillImage(SequenceFiles):
    """An image and its mask: a sequence of one frame to draw clips from, a pseudo-video to score."""

    @property
    def palette(self) -> bytes:
        """The colours of the mask, 768 bytes."""
        return read_palette(self.masks[0]) or VOC_PALETTE

    def load(self, index: int) -> ScoredVideo:
        """The image, turned, scaled and shifted steadily by a motion that is a function of `index` alone.

        Args:
            index: The number of the video in its split.

        Raises:
            MaskError: The mask shows no object, or cannot be used.
        """
        motion, prompts = _Motion.of(index), self._prompts()
        video = Video(
            name=self.name,
            frames=_MovedImage(self.frames[0], motion),
            frame_names=[f"{time:05}" for time in range(_VIDEO_LENGTH)],
            prompts=prompts,
            size=self.size,
            palette=self.palette,
        )
        return ScoredVideo(index, video, _MovedTruth(prompts[0], motion))


@dataclass(frozen=True)
class _Silhouette(StillImage):
    """An image with a binary mask: one object, of the pixels from 128 of 255 on."""

    @property
    def palette(self) -> bytes:
        """Those of VOC: the mask is written in black and white."""
        return VOC_PALETTE

    def labels(self, index: int) -> NDArray[np.uint8]:
        """The (H, W) label map, 1 in the object.

        Raises:
            MaskError: It cannot be read, or has another size than the image.
        """
        return (self.grey() > 127).astype(np.uint8)

    def grey(self) -> NDArray[np.uint8]:
        """The (H, W) mask as it is stored, whatever kind of PNG; colours as their luminance.

        Raises:
            MaskError: It cannot be read, or has another size than the image.
        """
        path = self.masks[0]
        try:
            with Image.open(path) as image:
                grey = np.array(image.convert("L"))
        except (OSError, SyntaxError, ValueError) as error:
            raise MaskError(f"Mask that cannot be read: {path}\n  found {error}\nCopy it again.") from error
        if grey.shape != self.size:
            raise MaskError(
                f"Mask of another size than its image: {path}\n"
                f"  found {grey.shape[1]}x{grey.shape[0]}, expected {self.size[1]}x{self.size[0]} (width x height).\n"
                "Get image and mask of the dataset again, or resize the mask."
            )
        return grey


@dataclass(frozen=True, kw_only=True)
class _CocoStill(StillImage):
    """An image of COCO; its mask is named, for messages, as if the JSON were a folder of them."""

    images: CocoImages
    number: int
    max_objects: int

    @property
    def palette(self) -> bytes:
        """Those of VOC."""
        return VOC_PALETTE

    def labels(self, index: int) -> NDArray[np.uint8]:
        """The (H, W) label map of the instances that show most pixels; where two overlap, the later of the file wins.

        Raises:
            MaskError: The file states another size than the image has.
        """
        labels = self.images.labels(self.number)
        if labels.shape != self.size:
            raise MaskError(
                f"{self.frames[0]} has {self.size[1]}x{self.size[0]} pixels, but {self.images.file} says "
                f"{labels.shape[1]}x{labels.shape[0]} (width x height).\n"
                "Get the image of the dataset again, or correct the file."
            )
        pixels = np.bincount(labels.ravel(), minlength=256)[1:]
        largest = np.argsort(-pixels, kind="stable")[: self.max_objects]
        kept = 1 + np.sort(largest[pixels[largest] > 0])
        numbers = np.zeros(256, np.uint8)
        numbers[kept] = 1 + np.arange(len(kept))
        return numbers[labels]


@dataclass(frozen=True)
class _FileSet:
    """The images of a set and their masks.

    Attributes:
        name: Of the set.
        folder: That the names of images begin in.
        pairs: The paths of each image and its mask.
        is_binary: Whether masks are.
    """

    name: str
    folder: Path
    pairs: Sequence[tuple[str, str]]
    is_binary: bool

    def __len__(self) -> int:
        return len(self.pairs)

    def still(self, number: int) -> StillImage:
        image, mask = map(Path, self.pairs[number])
        kind = _Silhouette if self.is_binary else StillImage
        return kind(_joined(self.name, image.relative_to(self.folder)), [image], {0: mask})


@dataclass(frozen=True)
class _CocoSet:
    """The images of COCO that have instances."""

    name: str
    images: CocoImages
    max_objects: int

    def __len__(self) -> int:
        return len(self.images)

    def still(self, number: int) -> StillImage:
        images, name = self.images, self.images.names[number]
        return _CocoStill(
            _joined(self.name, PurePath(name)),
            [images.folder / name],
            {0: images.file / name},
            images=images,
            number=number,
            max_objects=self.max_objects,
        )


def _joined(name: str, image: PurePath) -> str:
    """The name of an image that is one of no other set and no path: predictions are saved under it."""
    return "-".join([*PurePath(name).parts, *image.with_suffix("").parts])


class _StillImages(Sequence[SequenceFiles]):
    """Many images as little but text: workers copy what they touch, and sets have 100,000 images and more."""

    def __init__(self, sets: Sequence[_FileSet | _CocoSet], rows: NDArray[np.int64]) -> None:
        self.sets = sets
        self.rows = rows  # (N, 2), the set of each image and its number there

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> SequenceFiles: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[SequenceFiles]: ...
    def __getitem__(self, index: int | slice) -> SequenceFiles | Sequence[SequenceFiles]:
        if isinstance(index, slice):
            return _StillImages(self.sets, self.rows[index])
        one, number = self.rows[index].tolist()
        return self.sets[one].still(number)


class StaticImages(VOSDataModule):
    """Images to pre-train on, in the folders that people have: see `StillSet` for the layouts.

    A clip is one image, moved by `transform`, with the objects of a second one pasted over it. Images that are kept
    from training become pseudo-videos of 8 frames, the same in every run, which are validated, tested and predicted;
    the published trainings do not validate this stage. Of COCO, crowds are left out, and of an image with more than
    `max_objects` instances those that show fewest pixels.

    Args:
        root: The folder that holds the sets, or holds them in `static`.
        sets: The sets to use: names, or settings where there is more to say; all that are there if not given.
        validation_images: How many images are kept from training, evenly spread over all; at most every fifth.
        transform: How an image becomes a clip.
        merge: Probability that the objects of a second clip are pasted over a clip.
        **parts: What every dataset takes, see `VOSDataModule`; of the sampler, only `length` matters.

    Raises:
        ValueError: No image is to be kept, the name or split of a set leads elsewhere, its `repeat` is no count, or it
            is named twice with different settings.
    """

    def __init__(
        self,
        root: Path,
        sets: Sequence[str | StillSet] | None = None,
        validation_images: int = 50,
        transform: ClipAugmentation = _TRANSFORM,
        merge: float = 1.0,
        **parts: Any,
    ) -> None:
        if validation_images < 1:
            raise ValueError(f"StaticImages: validation_images={validation_images}; expected at least 1")
        super().__init__(root, transform=transform, merge=merge, **parts)
        self.sets = None if sets is None else [StillSet(one) if isinstance(one, str) else one for one in sets]
        _require_usable(self.sets or ())
        self.validation_images = validation_images

    def describe(self, split: Split) -> tuple[str, Path]:
        """For example "Still images (MSRA10K, coco COCO train2017) train" and the folder of the sets."""
        names = [str(one) for one in self._chosen]
        more = f", ... ({len(names)})" if len(names) > _NAMED else ""
        return f"Still images ({', '.join(names[:_NAMED])}{more}) {split}", self.folder

    def sequences(self, split: Split) -> Sequence[SequenceFiles]:
        """The images of a split; of those kept for validation, the ones that show an object.

        Raises:
            ConfigError: A setting of a set does not go with its layout.
            DatasetNotFoundError: A set is not there, or there is nothing to keep for validation.
            FrameError: An image cannot be used.
            MaskError: A mask is missing, too many, or cannot be used; or no image kept for validation has an object.
        """
        if split == "train":
            return _StillImages(self._read, self._train)
        images = _StillImages(self._read, self._rows[self._kept])
        shown = [image for image in images if image.labels(0).any()]
        if not shown:
            raise MaskError(
                f"None of the {len(images)} images of {self.folder} that are kept for validation shows an object,\n"
                f"  for example {images[0].masks[0]}: every pixel is background.\n"
                "Leave out images without objects, or keep more with --data.validation_images."
            )
        return shown

    def chances(self) -> NDArray[np.float64] | None:
        """(S,) how often each training image counts; None where none is repeated."""
        repeats = np.array([one.repeat for one in self._chosen], np.float64)
        return None if (repeats == 1).all() else repeats[self._train[:, 0]]

    @cached_property
    def folder(self) -> Path:
        """The folder of the sets."""
        for folder in (self.root / "static", self.root):
            if any(_sets_in(folder)):
                return folder
        is_set = any(_layouts(self.root))
        remedy = "This is itself a set: name the folder it lies in" if is_set else "Name the folder of those you have"
        raise DatasetNotFoundError(
            f"Still images are not at data.root={self.root}: no set in {self.root.absolute()} or its static.\n"
            f"  found there: {found_in(self.root)}\n"
            f"  expected: static/<set>/{_IMAGES}/*.jpg, static/<set>/{_MASKS}/*.png (indexed, named as the images),\n"
            "            static/<set>/*.jpg with *.png beside them, VOCdevkit/VOC2012, or coco\n"
            "Published trainings take COCO (https://cocodataset.org), PASCAL VOC 2012, ECSSD, MSRA10K and PASCAL-S.\n"
            f"{remedy}, with --data.root FOLDER,\n"
            "or write a small synthetic set in this layout, then run the same command "
            f"{'again' if self.sets is None else 'with --data.sets=null'}:\n"
            f"  lightning_vos data demo {self.root} --layout static"
        )

    @cached_property
    def _chosen(self) -> list[StillSet]:
        """The sets with their layouts, masks and splits."""
        wanted = self.sets if self.sets is not None else [StillSet(name) for name in _sets_in(self.folder)]
        return [_settled(self.folder, one) for one in dict.fromkeys(wanted)]

    @cached_property
    def _read(self) -> list[_FileSet | _CocoSet]:
        """The images of the sets, after a look at the first few of each."""
        return [self._probed(one) for one in self._chosen]

    def _probed(self, one: StillSet) -> _FileSet | _CocoSet:
        found = _read_set(self.folder / one.name, one, self.max_objects)
        first = [found.still(number) for number in range(min(_PROBED, len(found)))]
        if isinstance(found, _CocoSet):
            for image in first:
                image.labels(0)
        else:
            _require_objects(one, first)
        return found

    @cached_property
    def _rows(self) -> NDArray[np.int64]:
        """(N, 2): the set of every image and its number there."""
        rows = [(one, number) for one, images in enumerate(self._read) for number in range(len(images))]
        if len(rows) < 2:
            raise DatasetNotFoundError(
                f"{self.folder} holds {len(rows)} image with a mask; expected two or more: one is kept for validation."
            )
        return np.array(rows, np.int64)

    @cached_property
    def _kept(self) -> list[int]:
        """The numbers of the images that are kept for validation."""
        total = len(self._rows)
        count = min(self.validation_images, max(total // 5, 1))
        return [round(number) for number in np.linspace(0, total - 1, count)]

    @cached_property
    def _train(self) -> NDArray[np.int64]:
        """The rows of the images that are trained on."""
        return np.delete(self._rows, self._kept, axis=0)


def _require_usable(sets: Sequence[StillSet]) -> None:
    """Refuse settings that no files go with."""
    # Not in StillSet itself: of what cannot be built, the parser only says that it is not a name either.
    for one in sets:
        path = PurePath(one.name)
        if not path.parts or path.is_absolute() or ".." in path.parts:
            raise ValueError(f"StaticImages: a set is named {one.name!r}; expected the name of a folder in root")
        if one.split is not None and (one.split in ("", "..") or PurePath(one.split).name != one.split):
            raise ValueError(f"StaticImages: split={one.split!r} of {one.name}; expected a name such as trainval")
        if one.repeat < 1:
            raise ValueError(f"StaticImages: repeat={one.repeat} of {one.name}; expected at least 1")
    chosen = dict.fromkeys(sets)
    if len({(one.name, one.split) for one in chosen}) < len(chosen):
        raise ValueError("StaticImages: sets names a set twice, with different settings; expected it once")


def _sets_in(folder: Path) -> Iterator[str]:
    """The names of the folders that are sets, in order."""
    return (child.name for child in _folders(folder) if any(_layouts(child)))


def _layouts(folder: Path) -> Iterator[Layout]:
    """The layouts that fit a folder; that of the folders of a video has no pictures where these have them."""
    if _voc_folder(folder):
        yield "voc"
    if any(path.suffix.lower() in FRAME_SUFFIXES for path in _files(folder / _IMAGES)):
        yield "folders"
    if _coco_splits(folder):
        yield "coco"
    if any(map(_has_pair, [folder, *_folders(folder)[:_SIDES_PROBED]])):
        yield "side_by_side"


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(folder / entry.name for entry in os.scandir(folder) if entry.name[0] != "." and entry.is_dir())


def _files(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        yield from (Path(entry.path) for entry in os.scandir(folder) if entry.name[0] != "." and entry.is_file())


def _has_pair(folder: Path) -> bool:
    stems: dict[bool, set[str]] = {True: set(), False: set()}
    for path in _files(folder):
        if path.suffix.lower() in FRAME_SUFFIXES:
            stems[_is_png(path)].add(path.stem)
    return not stems[True].isdisjoint(stems[False])


def _is_png(path: Path) -> bool:
    return path.suffix.lower() == ".png"


def _voc_folder(folder: Path) -> Path | None:
    """The VOC2012 folder itself."""
    needed = (_IMAGES, _VOC_MASKS, _VOC_LISTS)
    return next(
        (place for place in (folder, folder / "VOC2012") if all((place / name).is_dir() for name in needed)), None
    )


def _coco_splits(folder: Path) -> list[str]:
    return sorted(file.stem.removeprefix("instances_") for file in folder.glob("annotations/instances_*.json"))


def _settled(folder: Path, one: StillSet) -> StillSet:
    """A set with its layout and what follows from it, after a check that it is there."""
    layouts = list(_layouts(folder / one.name))
    layout = one.layout or next(iter(layouts), None)
    if layout is None or layout not in layouts:
        trees = [_TREES[layout]] if layout else list(_TREES.values())
        raise DatasetNotFoundError(
            f"{folder} holds no set {one.name!r} (data.sets){f' of layout {layout}' if layout else ''}\n"
            f"  sets there: {', '.join(_sets_in(folder))}\n"
            f"  expected in {folder / one.name}: {f'{chr(10)}    or '.join(trees)}\n"
            "Name sets that are there with --data.sets, or add this one."
        )
    of_files = layout in ("folders", "side_by_side")
    setting = "split" if of_files and one.split else "masks" if not of_files and one.masks else None
    if setting:
        raise ConfigError(
            f"The set {one.name} (data.sets) has {setting}={getattr(one, setting)}, but its layout is {layout}: "
            f"{_TREES[layout]}\n"
            f"Take {setting} out: only sets {'of VOC and COCO have lists' if of_files else 'of other layouts need it'}."
        )
    if of_files:
        return replace(one, layout=layout, masks=one.masks or ("binary" if layout == "side_by_side" else "indexed"))
    return replace(one, layout=layout, split=one.split or ("trainval" if layout == "voc" else _only_split(folder, one)))


def _only_split(folder: Path, one: StillSet) -> str:
    """The split of COCO to train on: train2017, or else the only one for training, or else the only one."""
    splits = _coco_splits(folder / one.name)
    likely = [split for split in splits if split.startswith("train")] or splits
    if "train2017" in likely:
        return "train2017"
    if len(likely) > 1:
        raise ConfigError(
            f"{folder / one.name} has several splits of COCO, and none is train2017\n"
            f"  found annotations/instances_*.json of {', '.join(splits)}\n"
            f"Say which to train on: {_declared(one, f'split: {likely[0]}')}"
        )
    return likely[0]


def _read_set(folder: Path, one: StillSet, max_objects: int) -> _FileSet | _CocoSet:
    is_binary = one.masks == "binary"
    if one.layout == "coco":
        return _CocoSet(one.name, read_coco(*find_coco(folder, str(one.split)), InstanceRules()), max_objects)
    if one.layout == "voc":
        home = _voc_folder(folder) or folder
        return _FileSet(one.name, home / _IMAGES, _voc_pairs(home, str(one.split)), is_binary)
    if one.layout == "folders":
        images = folder / _IMAGES
        return _FileSet(one.name, images, _pairs(list_frames(images), folder / _MASKS), is_binary)
    places = [place for place in (folder, *_folders(folder)) if any(map(_is_picture, _files(place)))]
    return _FileSet(one.name, folder, [pair for place in places for pair in _beside(place)], is_binary)


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in FRAME_SUFFIXES


def _beside(folder: Path) -> list[tuple[str, str]]:
    """The paths of every JPEG in a folder and the PNG beside it."""
    images = sorted(path for path in _files(folder) if _is_picture(path) and not _is_png(path))
    if not images:
        raise FrameError(
            f"{folder} holds masks without images: PNGs, but no .jpg or .jpeg\n"
            f"  found there: {found_in(folder)}\n"
            "  expected each PNG beside the image of its name.\n"
            "Put the images there, or move the folder out of the set."
        )
    return _pairs(images, folder)


def _pairs(images: Sequence[Path], folder: Path) -> list[tuple[str, str]]:
    """The paths of every image and the mask of its name in a folder."""
    masks = masks_of(images, folder)
    missing = [image.stem for number, image in enumerate(images) if number not in masks]
    if missing:
        raise MaskError(
            f"{folder} has {len(masks)} masks for the {len(images)} images of {images[0].parent}\n"
            f"  missing: {', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}\n"
            "  expected: a PNG for every image, under its name.\n"
            "The copy is not complete: add the masks, or leave out these images."
        )
    return [(os.fspath(image), os.fspath(masks[number])) for number, image in enumerate(images)]


def _voc_pairs(home: Path, split: str) -> list[tuple[str, str]]:
    """The paths of every image on a list of VOC and its mask."""
    source = home / _VOC_LISTS / f"{split}.txt"
    if not source.is_file():
        raise DatasetNotFoundError(
            f"VOC 2012 in {home} has no list {split!r}: there is no {source}\n"
            f"  lists there: {', '.join(sorted(path.stem for path in source.parent.glob('*.txt'))) or 'none'}\n"
            "Name one of them as the split of the set in data.sets, or add this one."
        )
    names = listed(source)
    images = listed_files(names, image_files(home / _IMAGES), home / _IMAGES, source, "images")
    masks = listed_files(names, image_files(home / _VOC_MASKS), home / _VOC_MASKS, source, "masks")
    return list(zip(images, masks, strict=True))


def _require_objects(one: StillSet, images: Sequence[StillImage]) -> None:
    """Refuse masks that are not what the set says, as far as some images show.

    Raises:
        FrameError: An image cannot be read.
        MaskError: A mask cannot be read, or the masks hold no object.
    """
    mask = images[0].masks[0]
    counts = sum(np.bincount(_stored(image).ravel(), minlength=256) for image in images)
    assert isinstance(counts, np.ndarray)
    highest = int(np.flatnonzero(counts)[-1])
    if one.masks == "binary":
        if 0 < highest < 128:
            raise MaskError(
                f"The masks of {one.name} hold no object: no pixel has 128 of 255 or more, as in {mask}.\n"
                f"  found grey values up to {highest}, expected 255 in the object, for the masks are taken as binary.\n"
                f"If values are object ids, say so: {_declared(one, 'masks: indexed')}"
            )
        return
    others = counts[1:VOID]
    if counts[VOID] > others.sum() and (not others.any() or np.count_nonzero(others) > _GREYS):
        every = "nearly every" if others.any() else "every"
        raise MaskError(
            f"The masks of {one.name} hold no object: {every} pixel is 0 or 255 (not annotated), as in {mask}.\n"
            "Saliency sets come like this, their object being 255. Expected object ids from 1 on.\n"
            f"If 255 is the object, say so: {_declared(one, 'masks: binary')}"
        )


def _declared(one: StillSet, setting: str) -> str:
    """How a setting of a set is given."""
    return f"--data.sets='[{{name: {one.name}, {setting}}}]', with the other sets to use in the list."


def _stored(image: StillImage) -> NDArray[np.uint8]:
    """The (H, W) mask of an image as it is stored."""
    return image.grey() if isinstance(image, _Silhouette) else read_mask(image.masks[0], frame_size(image.frames[0]))
