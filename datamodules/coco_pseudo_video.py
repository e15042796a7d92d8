"""COCO as video: every clip is one image that is moved, with masks to track or with classes and boxes to find."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

from torch.utils.data import DataLoader

from datamodules.annotations import labels_of
from datamodules.base import Split, VOSDataModule
from datamodules.clips import collate_clips
from datamodules.coco import CocoImages, InstanceRules, find_coco, read_coco
from datamodules.coco_clips import VIDEO_LENGTH, CocoClips, CocoStills, InstanceStill, PseudoClips
from datamodules.instance_clips import ClipSource, InstanceDataModule, InstanceTransform, VideoFiles
from datamodules.pseudo_videos import Motion
from datamodules.readers import SequenceFiles
from lightning_vos.errors import MaskError
from lightning_vos.structures import Clip

_LARGE = InstanceRules(min_area=2000, min_side=20)
_ANY = InstanceRules()
_AUGMENTATION = InstanceTransform(distort=0.0)


class COCOPseudoVideo(VOSDataModule):
    """COCO as clips with masks to track; how HODOR is trained before, or instead of, videos.

    A batch has clips of one number of objects, from 1 to `max_objects` with equal chances, of images of similar shape
    that have as many; they are drawn from them. Clips are resized to `area` and padded to the largest of the batch, to
    multiples of 32. Where masks overlap, the later instance of the file wins. An instance that the first frame does not
    show makes the clip be drawn again. Images of the other splits become pseudo-videos of 8 frames, the same in every
    run, which are validated, tested and predicted.

    Args:
        root: The folder of COCO, or the folder that holds it as `coco`.
        train_split: The images to train on, such as train2017: `annotations/instances_<split>.json` and `<split>`.
        val_split: Those to validate with.
        test_split: Those to test on and to predict.
        motion: How an image becomes a clip, see `datamodules.pseudo_videos.pseudo_video`.
        length: Frames in a clip.
        max_objects: Of a clip.
        area: Height times width of a clip, in pixels; the shape of the image is kept.
        rules: Which instances are objects.
        validation_images: How many images, those of the lowest ids, become pseudo-videos.
        batch_size: Clips a step on each device.
        workers: Processes that prepare clips; 0 prepares them in the training process.

    Raises:
        ValueError: A count is none.
    """

    def __init__(
        self,
        root: Path,
        train_split: str = "train2017",
        val_split: str = "val2017",
        test_split: str = "val2017",
        motion: Motion = "hodor",
        length: int = 3,
        max_objects: int = 4,
        area: int = 300_000,
        rules: InstanceRules = _LARGE,
        validation_images: int = 50,
        batch_size: int = 2,
        workers: int = 4,
    ) -> None:
        if min(length, area, validation_images) < 1:
            raise ValueError(
                f"COCOPseudoVideo: length={length}, area={area}, validation_images={validation_images}; "
                "expected at least 1 of each"
            )
        super().__init__(root, batch_size, workers, max_objects=max_objects)
        self.splits: dict[Split, str] = {"train": train_split, "val": val_split, "test": test_split}
        self.motion: Motion = motion
        self.length = length
        self.area = area
        self.rules = rules
        self.validation_images = validation_images

    def describe(self, split: Split) -> tuple[str, Path]:
        """For example "COCO train2017 as video" and the folder of the images."""
        return f"COCO {self.splits[split]} as video", find_coco(self.root, self.splits[split])[1]

    def sequences(self, split: Split) -> Sequence[SequenceFiles]:
        """The images of a split that have objects.

        Raises:
            DatasetNotFoundError: The annotations are missing or malformed, an image is missing, or none has an object.
        """
        if split == "train":
            return CocoStills(self._train, self.max_objects, self.motion, self.rules.min_area)
        files = find_coco(self.root, self.splits[split])
        images = read_coco(*files, self.rules, at_most=self.validation_images)
        stills = CocoStills(images, self.max_objects, self.motion, self.rules.min_area)
        shown = [still for still in stills if still.labels(0).any()]
        if not shown:
            raise MaskError(f"None of the instances of {files[0]} that are used has a pixel: get the file again.")
        return shown

    def train_dataloader(self) -> DataLoader[Clip]:
        """Endless batches of clips."""
        clips = PseudoClips(
            self._train,
            self.motion,
            self.length,
            self.max_objects,
            self.area,
            self.rules.min_area,
            self.batch_size,
            self.seed,
        )
        return self.endless(clips, collate_clips)

    @cached_property
    def _train(self) -> CocoImages:
        return read_coco(*find_coco(self.root, self.splits["train"]), self.rules)


class COCOInstanceVideo(InstanceDataModule):
    """COCO as clips with classes and boxes to find; how TAFormer and SeqFormer are trained before videos.

    Every image with an instance is visited once an epoch. Where masks overlap, the later instance of the file wins.
    Images of the other splits become pseudo-videos of 8 frames, the same in every run.

    Args:
        root: As `COCOPseudoVideo`, and so are `train_split`, `val_split` and `test_split`.
        train_split: The images to train on.
        val_split: Those to validate with.
        test_split: Those to test on and to predict.
        motion: How an image becomes a clip, see `datamodules.pseudo_videos.pseudo_video`. TAFormer turns it
            (`rotation`).
        length: Frames in a clip; SeqFormer takes 1.
        max_instances: Of a clip; of more, some are drawn.
        rules: Which instances are used.
        augmentation: What is done to the frames of a clip.
        validation_images: How many images, those of the lowest ids, become pseudo-videos.
        batch_size: Clips a step on each device.
        workers: Processes that prepare clips; 0 prepares them in the training process.
        skip_broken: Whether training draws anew where an image cannot be read, or has another size than the JSON says,
            instead of stopping; what is skipped is counted and named. Nothing is ever skipped that is scored.

    Raises:
        ValueError: A count is none.
    """

    def __init__(
        self,
        root: Path,
        train_split: str = "train2017",
        val_split: str = "val2017",
        test_split: str = "val2017",
        motion: Motion = "rotation",
        length: int = 5,
        max_instances: int = 25,
        rules: InstanceRules = _ANY,
        augmentation: InstanceTransform = _AUGMENTATION,
        validation_images: int = 50,
        batch_size: int = 2,
        workers: int = 4,
        skip_broken: bool = False,
    ) -> None:
        if validation_images < 1:
            raise ValueError(f"COCOInstanceVideo: validation_images={validation_images}; expected at least 1")
        super().__init__(root, batch_size, workers, skip_broken)
        self.splits: dict[Split, str] = {"train": train_split, "val": val_split, "test": test_split}
        self.motion: Motion = motion
        self.length = length
        self.max_instances = max_instances
        self.rules = rules
        self.augmentation = augmentation
        self.validation_images = validation_images
        self._found: dict[Split, CocoImages] = {}

    @property
    def categories(self) -> Mapping[int, str]:
        """Category id -> name, ids rising, of what was set up; class k is the k-th."""
        return next(iter(self._found.values())).categories

    def sources(self) -> tuple[Sequence[tuple[ClipSource, InstanceTransform]], Sequence[float]]:
        """The images of the train split.

        Raises:
            DatasetNotFoundError: Annotations are missing or malformed, an image is missing, or there is no instance.
        """
        images = read_coco(*find_coco(self.root, self.splits["train"]), self.rules)
        self._found["train"] = images
        clips = CocoClips(images, labels_of(images.categories), self.motion, self.length, self.max_instances)
        return [(clips, self.augmentation)], [1.0]

    def videos(self, split: Literal["val", "test"]) -> Sequence[VideoFiles]:
        """The pseudo-videos of a split.

        Raises:
            DatasetNotFoundError: As `sources`.
        """
        images = read_coco(*find_coco(self.root, self.splits[split]), self.rules, at_most=self.validation_images)
        self._found[split] = images
        clips = CocoClips(images, labels_of(images.categories), self.motion, VIDEO_LENGTH, self.max_instances)
        return [InstanceStill(clips, number) for number in range(len(images))]

    def describe(self, split: Split) -> str:
        """For example "COCO train2017 as video: 117266 images, 849949 instances in data/coco/train2017"."""
        found = self._found[split]
        counts = f"{len(found)} images, {len(found.ids)} instances in {found.folder.absolute()}"
        return f"COCO {self.splits[split]} as video: {counts}"
