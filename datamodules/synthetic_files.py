"""A synthetic set on disk, in the folders of DAVIS 2017 or of still images.

Nothing here imports torch, so that the command line can write a set at once.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image
from rich.console import Console
from rich.progress import track

from datamodules.rendering import Difficulty, RenderedClip, render_clip
from datamodules.scenes import SceneSettings, render_scene
from lightning_vos.errors import ConfigError
from lightning_vos.io.masks import VOC_PALETTE, write_mask

FIRST_VAL_INDEX = 1_000_000  # validation clips keep their content whatever the number of training clips
FIRST_SCORED_SCENE = 2**31  # no training draws so many
_SCENES_OF_A_SPLIT = 1_000_000
_STILLS_README = """This is a synthetic data set of still images, rendered by lightning_vos.
It holds no image and no mask of any other data set. Scores on it compare with nothing published.

synthetic.json  the settings it was rendered with
"""
_README = """This is a synthetic data set, rendered by lightning_vos in the folder layout of DAVIS 2017.
It holds no frame and no mask of the DAVIS data set. Scores on it compare with nothing published.

synthetic.json  the settings it was rendered with
tags.json       what is difficult in each sequence, measured on its masks
"""


@dataclass(frozen=True)
class SyntheticSettings:
    """What a synthetic set holds; the same settings always give the same files.

    Attributes:
        train: Number of training sequences.
        val: Number of validation sequences.
        frames: Frames of every sequence.
        height: Pixels.
        width: Pixels.
        seed: Another seed gives other videos.
        difficulty: How often a sequence shows each difficulty.
    """

    train: int = 40
    val: int = 12
    frames: int = 16
    height: int = 120
    width: int = 160
    seed: int = 0
    difficulty: Difficulty = field(default_factory=Difficulty)

    def __post_init__(self) -> None:
        """Refuse what cannot be rendered."""
        if not 1 <= self.train <= FIRST_VAL_INDEX or self.val < 1 or self.frames < 3 or self.seed < 0:
            raise ConfigError(
                f"No synthetic set of train={self.train}, val={self.val}, frames={self.frames}, seed={self.seed} can be"
                " rendered.\nExpected train >= 1, val >= 1, frames >= 3 and seed >= 0."
            )
        if min(self.height, self.width) < 64:
            raise ConfigError(
                f"No synthetic set of {self.height} x {self.width} pixels can be rendered: expected 64 x 64 or more."
            )


@dataclass(frozen=True)
class StillSettings:
    """What a synthetic set of still images holds; the same settings always give the same files.

    Attributes:
        images: Number of images.
        height: Pixels.
        width: Pixels.
        seed: Another seed gives other images.
    """

    images: int = 200
    height: int = 120
    width: int = 160
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be rendered."""
        if self.images < 2 or self.seed < 0 or min(self.height, self.width) < 64:
            raise ConfigError(
                f"No synthetic images of images={self.images}, height={self.height}, width={self.width}, "
                f"seed={self.seed} can be rendered.\nExpected images >= 2, 64 x 64 pixels or more, and seed >= 0."
            )


@dataclass(frozen=True)
class SceneSetSettings:
    """What a written set of scenes holds; the same settings always give the same files.

    No clip of it is ever drawn in training, whatever the seeds.

    Attributes:
        val: Number of sequences to choose by.
        test: Number of sequences to report.
        frames: Frames of every sequence.
        height: Pixels.
        width: Pixels.
        seed: Another seed gives other videos.
        scenes: What they show.
    """

    val: int = 16
    test: int = 32
    frames: int = 32
    height: int = 240
    width: int = 432
    seed: int = 0
    scenes: SceneSettings = field(default_factory=lambda: SceneSettings(max_gap=3))

    def __post_init__(self) -> None:
        """Refuse what cannot be rendered."""
        counts = self.val, self.test
        if not 1 <= min(counts) <= max(counts) <= _SCENES_OF_A_SPLIT or self.frames < 3 or self.seed < 0:
            raise ConfigError(
                f"No set of scenes of val={self.val}, test={self.test}, frames={self.frames}, seed={self.seed} can be"
                " rendered.\nExpected val >= 1, test >= 1, frames >= 3 and seed >= 0."
            )
        if min(self.height, self.width) < 64:
            raise ConfigError(
                f"No set of scenes of {self.height} x {self.width} pixels can be rendered: expected 64 x 64 or more."
            )


def write_davis(root: Path, settings: SyntheticSettings) -> None:
    """Write a synthetic set in the layout of DAVIS 2017, or leave it alone where it is complete.

    The set is written beside `root` and moved there at the end: an interrupted call leaves nothing behind that could be
    taken for a set.

    Args:
        root: The folder that will hold `JPEGImages`, `Annotations` and `ImageSets`.
        settings: What is rendered.

    Raises:
        ConfigError: `root` holds something else, or a synthetic set of other settings, or cannot be made.
    """
    write_whole(root, settings, lambda draft: _write(draft, settings))


def write_scenes(root: Path, settings: SceneSetSettings) -> None:
    """Write scenes to be scored on in the layout of DAVIS 2017, as `write_davis`.

    Args:
        root: The folder that will hold `JPEGImages`, `Annotations` and `ImageSets`.
        settings: What is rendered.

    Raises:
        ConfigError: `root` holds something else, or a synthetic set of other settings, or cannot be made.
    """
    write_whole(root, settings, lambda draft: _write_scene_set(draft, settings))


def write_stills(root: Path, settings: StillSettings) -> None:
    """Write a synthetic set of still images, each the first frame of a clip; or leave it alone where it is complete.

    Args:
        root: The folder that will hold the folder `synthetic`, with `JPEGImages` and `Annotations` in it.
        settings: What is rendered.

    Raises:
        ConfigError: `root` holds something else, or a synthetic set of other settings, or cannot be made.
    """
    write_whole(root, settings, lambda draft: _write_images(draft, settings))


def write_whole(
    root: Path, settings: SyntheticSettings | StillSettings | SceneSetSettings, write: Callable[[Path], None]
) -> None:
    """Have a set written beside `root` and move it there, or leave alone what is complete."""
    if _is_written(root, settings):
        return
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{root.parent} cannot hold a synthetic set: {error.strerror}.\nNothing was changed. Choose another folder."
        ) from error
    with TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as scratch:
        draft = Path(scratch) / root.name
        write(draft)
        if not _is_written(root, settings):  # another process may have been faster
            if root.exists():
                root.rmdir()  # it is empty, and not every system renames onto a folder
            draft.rename(root)


def _is_written(root: Path, settings: SyntheticSettings | StillSettings | SceneSetSettings) -> bool:
    """Whether `root` holds the very set; refuses a folder that holds anything else."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    record = root / "synthetic.json"
    if not record.is_file():
        raise ConfigError(
            f"A synthetic set would be written to {root}, but something else is there (no {record.name} in it).\n"
            "Nothing was changed. Choose another folder, or train on the data that is there."
        )
    found, wanted = json.loads(record.read_text()), asdict(settings)
    if "difficulty" in found.keys() & wanted.keys():
        # An older set does not name a difficulty that was not known yet: it shows none of it.
        found["difficulty"] = dict.fromkeys(wanted["difficulty"], 0.0) | found["difficulty"]
    if found != wanted:
        differing = [key for key in wanted if found.get(key) != wanted[key]]
        raise ConfigError(
            f"{root} holds a synthetic set of other settings; nothing was changed.\n"
            f"Found:    {', '.join(f'{key}={found.get(key)}' for key in differing)}\n"
            f"Expected: {', '.join(f'{key}={wanted[key]}' for key in differing)}\n"
            "Remove that folder to have it written anew, or choose another one."
        )
    return True


def _write(root: Path, settings: SyntheticSettings) -> None:
    splits = {
        "train": {f"synthetic-train-{k:03}": k for k in range(settings.train)},
        "val": {f"synthetic-val-{k:03}": FIRST_VAL_INDEX + k for k in range(settings.val)},
    }

    def render(index: int) -> RenderedClip:
        return render_clip(
            settings.seed,
            index,
            frames=settings.frames,
            height=settings.height,
            width=settings.width,
            difficulty=settings.difficulty,
        )

    _write_sequences(root, splits, render)
    (root / "synthetic.json").write_text(json.dumps(asdict(settings), indent=1))


def _write_scene_set(root: Path, settings: SceneSetSettings) -> None:
    val, test = FIRST_SCORED_SCENE, FIRST_SCORED_SCENE + _SCENES_OF_A_SPLIT
    splits = {
        "val": {f"scene-val-{k:03}": val + k for k in range(settings.val)},
        "test": {f"scene-test-{k:03}": test + k for k in range(settings.test)},
    }

    def render(index: int) -> RenderedClip:
        size = settings.height, settings.width
        return render_scene(settings.seed, index, settings.frames, *size, settings.scenes)

    _write_sequences(root, splits, render)
    (root / "synthetic.json").write_text(json.dumps(asdict(settings), indent=1))


def _write_sequences(
    root: Path, splits: Mapping[str, Mapping[str, int]], render: Callable[[int], RenderedClip]
) -> None:
    """The lists of the splits, and of each sequence, by its index, the frames, the masks and the tags."""
    for year in ("2016", "2017"):
        lists = root / "ImageSets" / year
        lists.mkdir(parents=True)
        for split, sequences in splits.items():
            (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in sequences))

    tags = {}
    indices = {name: index for sequences in splits.values() for name, index in sequences.items()}
    title, console = f"Rendering {len(indices)} videos", Console(stderr=True)
    for name, index in track(indices.items(), title, console=console, disable=not console.is_terminal):
        clip = render(index)
        tags[name] = clip.tags
        images, annotations = (root / kind / "480p" / name for kind in ("JPEGImages", "Annotations"))
        images.mkdir(parents=True)
        annotations.mkdir(parents=True)
        for time, (frame, mask) in enumerate(zip(clip.frames, clip.masks, strict=True)):
            Image.fromarray(frame).save(images / f"{time:05}.jpg", quality=92)
            write_mask(annotations / f"{time:05}.png", mask, VOC_PALETTE)
    (root / "tags.json").write_text(json.dumps(tags, indent=1))
    (root / "README.txt").write_text(_README)


def _write_images(root: Path, settings: StillSettings) -> None:
    images, annotations = (root / "synthetic" / kind for kind in ("JPEGImages", "Annotations"))
    images.mkdir(parents=True)
    annotations.mkdir()
    title, console = f"Rendering {settings.images} images", Console(stderr=True)
    for index in track(range(settings.images), title, console=console, disable=not console.is_terminal):
        clip = render_clip(settings.seed, index, frames=3, height=settings.height, width=settings.width)
        Image.fromarray(clip.frames[0]).save(images / f"{index:05}.jpg", quality=92)
        write_mask(annotations / f"{index:05}.png", clip.masks[0], VOC_PALETTE)
    (root / "README.txt").write_text(_STILLS_README)
    (root / "synthetic.json").write_text(json.dumps(asdict(settings), indent=1))
