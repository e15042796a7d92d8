from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_warn

from datamodules.annotations import labels_of, read_json
from datamodules.base import ServerSplit, Split
from datamodules.coco import InstanceRules, find_coco, read_coco
from datamodules.coco_clips import CocoClips
from datamodules.instance_clips import ClipSource, InstanceDataModule, InstanceTransform, VideoFiles
from datamodules.pseudo_videos import Motion
from datamodules.youtube_vis_classes import CATEGORIES, COCO_CLASSES
from datamodules.youtube_vis_files import TrackedVideo, VideoList, read_tracks, read_videos, require_frames
from lightning_vos.errors import ConfigError, DatasetNotFoundError
from lightning_vos.evaluation.holdout import is_held_out
from lightning_vos.evaluation.youtube_vis import Track, read_ground_truth

VISSplit = Literal["train", "holdout_train", "holdout_val", "valid"]
Year = Literal[2019, 2021]

_FILES = {
    "train": ("train.json", "train/instances.json", "annotations/instances_train_sub.json"),
    "valid": (
        *("valid.json", "valid/instances.json", "val/instances.json"),
        *("annotations/instances_val_sub.json", "annotations/instances_valid_sub.json"),
    ),
}
_FRAMES = {
    "train": ("train/JPEGImages", "JPEGImages"),
    "valid": ("valid/JPEGImages", "val/JPEGImages", "JPEGImages"),
}
_AUGMENTATION = InstanceTransform()


@dataclass(frozen=True)
class COCOMixture:
    """Images of COCO among the clips of YouTube-VIS: joint training.

    Attributes:
        root: The folder of COCO, or the folder that holds it as `coco`.
        share: The probability that a clip is one image of COCO, moved.
        split: The images.
        motion: How an image becomes a clip, see `datamodules.pseudo_videos.pseudo_video`.
        classes: COCO category id -> category id of the videos; instances of others are not used. The one of SeqFormer
            by default, `COCO_CLASSES`.
        max_instances: Of a clip; of more, some are drawn.
        rules: Which instances are used.
    """

    root: Path
    share: float
    split: str = "train2017"
    motion: Motion = "seqformer"
    classes: Mapping[int, int] | None = None
    max_instances: int = 25
    rules: InstanceRules = field(default_factory=InstanceRules)

    def __post_init__(self) -> None:
        """Refuse what is no share."""
        if not 0 < self.share < 1:
            raise ValueError(f"COCOMixture: share={self.share}; expected more than 0 and less than 1")


class YouTubeVIS(InstanceDataModule):
    """YouTube-VIS 2019 or 2021, or a person's own videos with a JSON in its format.

    Looks for `train.json`, `train/instances.json` or `annotations/instances_train_sub.json`, and for `train/JPEGImages`
    or `JPEGImages`; for the split `valid` likewise. The truth of `valid` is not public: a JSON without annotations has
    videos without truth. `holdout_val` and `holdout_train` are the two parts of `train` by the rule of
    `lightning_vos.evaluation.holdout`.

    A clip has a key frame, one frame before and one behind it at gaps uniform in 1 to `reach`, kept inside the video,
    and others drawn from outside of these; in order of time. Every frame is the key once an epoch; with `coco`, a share
    of 1 - `coco.share` of them, drawn anew every epoch. Crowds are left out.

    Args:
        root: The folder of the dataset, or the folder that holds it as `youtube_vis_<year>`, `ytvis_<year>`,
            `youtube_vis` or `ytvis`.
        year: 2019 or 2021: files with the categories of the other year are refused.
        train_split: The videos to train on.
        val_split: Those to validate with.
        test_split: Those to test on and to predict.
        train_file: The JSON of `train`, instead of the one that is found.
        valid_file: The JSON of `valid`, instead of the one that is found.
        frames: The folder that the file names of both are relative to, instead of the one that is found.
        length: Frames in a clip.
        reach: The largest gap between the key frame and its neighbours, in frames of the JSON.
        augmentation: What is done to the frames of a clip; images of COCO are not distorted in colour.
        coco: Images of COCO to train on as well.
        batch_size: Clips a step on each device.
        workers: Processes that prepare clips; 0 prepares them in the training process.
        skip_broken: Whether training draws anew where a frame cannot be read, or has another size than the JSON says,
            instead of stopping; what is skipped is counted and named. Nothing is ever skipped that is scored.

    Raises:
        ValueError: `length` or `reach` is no count.
    """

    def __init__(
        self,
        root: Path,
        year: Year = 2019,
        train_split: VISSplit = "train",
        val_split: VISSplit = "holdout_val",
        test_split: VISSplit = "valid",
        train_file: Path | None = None,
        valid_file: Path | None = None,
        frames: Path | None = None,
        length: int = 5,
        reach: int = 3,
        augmentation: InstanceTransform = _AUGMENTATION,
        coco: COCOMixture | None = None,
        batch_size: int = 2,
        workers: int = 4,
        skip_broken: bool = False,
    ) -> None:
        if length < 1 or reach < 1:
            raise ValueError(f"YouTubeVIS: length={length}, reach={reach}; expected at least 1 of each")
        super().__init__(root, batch_size, workers, skip_broken)
        self.year = year
        self.splits: dict[Split, VISSplit] = {"train": train_split, "val": val_split, "test": test_split}
        self.files = {"train": train_file, "valid": valid_file}
        self.frames = frames
        self.length = length
        self.reach = reach
        self.augmentation = augmentation
        self.coco = coco
        self._found: dict[Split, VideoList] = {}

    @property
    def categories(self) -> Mapping[int, str]:
        """Category id -> name, ids rising, of what was set up; class k is the k-th."""
        return next(iter(self._found.values())).categories

    def sources(self) -> tuple[Sequence[tuple[ClipSource, InstanceTransform]], Sequence[float]]:
        """The videos of the train split that have instances, and the images of COCO.

        Raises:
            ConfigError: Nobody said which categories the classes of COCO are.
            DatasetNotFoundError: An annotation file is missing or malformed, or a frame is missing.
        """
        found, content = self._videos_of("train")
        if self.splits["train"] == "train" and self.splits["val"] == "holdout_val":
            rank_zero_warn(
                "Videos of holdout_val are trained on too (data.train_split=train): the validation score says little."
                " To keep them out: --data.train_split holdout_train"
            )
        clips: list[tuple[ClipSource, InstanceTransform]] = [
            (read_tracks(found, content, self.length, self.reach), self.augmentation)
        ]
        if self.coco is None:
            return clips, [1.0]
        classes = self._coco_classes(found, self.coco.classes)
        images = read_coco(*find_coco(self.coco.root, self.coco.split), self.coco.rules, categories=list(classes))
        unknown = sorted(set(classes) - set(images.categories)) if self.coco.classes else []
        if unknown or (self.coco.classes is None and images.categories.get(1) != "person"):
            there = ", ".join(f"{category} {name}" for category, name in list(images.categories.items())[:6])
            raise ConfigError(
                f"{images.file} has not the categories that data.coco.classes names{': ' * bool(unknown)}"
                f"{', '.join(map(str, unknown[:6]))}\n"
                f"  categories there: {there}, ...\n"
                "Say which categories of the videos they are: --data.coco.classes '{1: 3}', id there: id of the videos."
            )
        moved = CocoClips(images, classes, self.coco.motion, self.length, self.coco.max_instances)
        return [*clips, (moved, replace(self.augmentation, distort=0.0))], [1 - self.coco.share, self.coco.share]

    def videos(self, split: Literal["val", "test"]) -> Sequence[VideoFiles]:
        """The videos of a split, with their tracks if these are public.

        Raises:
            DatasetNotFoundError: As `sources`.
        """
        found, content = self._videos_of(split)
        truth: defaultdict[int, dict[tuple[int, int], Sequence[Track]]] | None = None
        if content.get("annotations"):
            del content
            kept_out = self.splits[split] if self.splits[split] != "valid" else None
            tracks = read_ground_truth(found.file, None if kept_out == "train" else kept_out).tracks
            truth = defaultdict(dict)
            for key, members in tracks.items():
                truth[key[0]][key] = members
        return [TrackedVideo(found, row, None if truth is None else truth[row.video_id]) for row in found.videos]

    def server(self) -> ServerSplit | None:
        """The server of YouTube-VIS if the truth of the test split is not public."""
        return ServerSplit("youtube_vis", self._found["test"].file, None) if self.splits["test"] == "valid" else None

    def describe(self, split: Split) -> str:
        """For example "YouTube-VIS 2019 holdout_val: 112 videos, 3012 frames in data/ytvis/train.json"."""
        found = self._found[split]
        frames = sum(len(row.frames) for row in found.videos)
        plural = "s" if len(found.videos) > 1 else ""
        title = f"YouTube-VIS {self.year} {self.splits[split]}"
        return f"{title}: {len(found.videos)} video{plural}, {frames} frames in {found.file.absolute()}"

    def _videos_of(self, split: Split) -> tuple[VideoList, Any]:
        """The videos of a split, and the whole content of their JSON."""
        name = self.splits[split]
        file, folder = self._find("valid" if name == "valid" else "train")
        content = read_json(file)
        found = read_videos(file, folder, content)
        names = tuple(found.categories.values())
        other = next(year for year in CATEGORIES if year != self.year)
        if set(names) == set(CATEGORIES[other]):
            raise ConfigError(
                f"{file} has the categories of YouTube-VIS {other}, but data.year={self.year}.\n"
                f"The same id is another class there. Add --data.year {other}, or name the other dataset as data.root."
            )
        if name.startswith("holdout"):
            kept = [row for row in found.videos if is_held_out(row.name) == (name == "holdout_val")]
            if not kept:
                raise DatasetNotFoundError(
                    f"None of the {len(found.videos)} videos of {file} belongs to {name} (data.{split}_split).\n"
                    "About one in twenty is held out, by the name of its folder. Name another split:\n"
                    f"  --data.{split}_split train, or valid with a JSON of yours: --data.valid_file FILE"
                )
            found = replace(found, videos=kept)
        require_frames(found)
        self._found[split] = found
        return found, content

    def _find(self, split: Literal["train", "valid"]) -> tuple[Path, Path]:
        """The JSON of a split, and the folder that its file names are relative to."""
        names = (f"youtube_vis_{self.year}", f"ytvis_{self.year}", "youtube_vis", "ytvis")
        bases = [self.root, *(self.root / name for name in names)]
        stated = self.files[split]
        files = [stated] if stated else [base / name for base in bases for name in _FILES[split]]
        folders = [self.frames] if self.frames else [base / name for base in bases for name in _FRAMES[split]]
        file = next((path for path in files if path.is_file()), None)
        folder = next((path for path in folders if path.is_dir()), None)
        if file and folder:
            return file, folder
        entries = sorted(path.name for path in self.root.iterdir()) if self.root.is_dir() else None
        listed = "no such folder" if entries is None else ", ".join(entries[:6]) or "an empty folder"
        wanted = f"{split}.json (data.{split}_file)" if not file else f"{split}/JPEGImages (data.frames)"
        raise DatasetNotFoundError(
            f"YouTube-VIS {self.year} is not at data.root={self.root}: no {wanted} in {self.root.absolute()} or its"
            f" {names[0]}.\n"
            f"  found there: {listed}{', ...' if entries and len(entries) > 6 else ''}\n"
            f"  expected: {split}.json or {split}/instances.json, {split}/JPEGImages/<video>/*.jpg\n"
            "Get it from https://youtube-vos.org/dataset/vis and name its folder with --data.root FOLDER,\n"
            "or write a small synthetic set in this layout, then run the same command again:\n"
            f"  lightning_vos data demo {self.root} --layout youtube_vis"
        )

    def _coco_classes(self, found: VideoList, stated: Mapping[int, int] | None) -> dict[int, int]:
        """COCO category id -> class."""
        if stated is None:
            official = dict(enumerate(CATEGORIES[self.year], start=1))
            if found.categories != official:
                raise ConfigError(
                    f"{found.file} has not the categories of YouTube-VIS {self.year}, so nobody knows which of them the"
                    " classes of COCO are.\n"
                    "Say so with --data.coco.classes '{1: 3}', COCO category id: category id of the videos."
                )
            stated = COCO_CLASSES[self.year]
        labels = labels_of(found.categories)
        unknown = sorted(set(stated.values()) - set(labels))
        if unknown or not stated:
            raise ConfigError(
                f"data.coco.classes leads to the category ids {unknown}, which {found.file} does not have.\n"
                f"  ids there: {', '.join(map(str, list(labels)[:12]))}{', ...' if len(labels) > 12 else ''}\n"
                "Name category ids of the videos."
            )
        return {category: labels[target] for category, target in stated.items()}
