"""Synthetic videos on disk, in the layouts of YouTube-VOS, LVOS and Long-Time Video.

Nothing here imports torch, so that the command line can write a set at once.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import track

from datamodules.rendering import render_clip
from datamodules.synthetic_files import FIRST_VAL_INDEX, SyntheticSettings, write_whole
from lightning_vos.errors import ConfigError
from lightning_vos.evaluation.holdout import is_held_out
from lightning_vos.io.masks import VOC_PALETTE, write_mask

_STEP = 5  # YouTube-VOS annotates every fifth frame; the names of LVOS differ by five
_TEST_INDEX = 2 * FIRST_VAL_INDEX
_TRIES = 100
_LTV_MASKS = 20  # of a video
_SEEN, _UNSEEN = ("kite", "barrel", "lantern"), "teapot"
_README = """This is a synthetic data set, rendered by lightning_vos in the folder layout of {dataset}.
It holds no frame and no mask of that data set. Scores on it compare with nothing published.

synthetic.json  the settings it was rendered with
"""


@dataclass(frozen=True)
class _Recorded(SyntheticSettings):
    """The settings of a set and the layout that it was written in."""

    layout: str = ""


class _Footage(NamedTuple):
    """A rendered video in which an object may enter late or leave."""

    frames: NDArray[np.uint8]  # (T, H, W, 3) RGB
    masks: NDArray[np.uint8]  # (T, H, W)


def write_synthetic_youtube_vos(root: Path, settings: SyntheticSettings) -> None:
    """Write a synthetic set in the layout of YouTube-VOS, or leave it alone where it is complete.

    `settings.frames` frames of a video are filmed, every fifth is annotated. In `train` there are `settings.train`
    videos to train on and `settings.val` that are held out by their names, with all masks; `unseen.json` names the
    category of some objects of the latter. `valid` has `settings.val` videos with the masks of new objects alone. Both
    have all frames beside them. The first video of each part has an object that enters late, the second, if there is
    one, an object that leaves.

    Args:
        root: The folder that will hold `train`, `valid`, `train_all_frames` and `valid_all_frames`.
        settings: What is rendered.

    Raises:
        ConfigError: `root` holds something else, or a synthetic set of other settings, or cannot be made.
    """
    if settings.frames < 2 * _STEP + 1:
        raise ConfigError(
            f"frames={settings.frames} of YouTube-VOS; expected 11 or more, of which every fifth is annotated"
        )

    def write(draft: Path) -> None:
        trained = _names("youtube_vos-train", settings, settings.train, lambda name: not is_held_out(name))
        held_out = _names("youtube_vos-train", settings, settings.val, is_held_out)
        hidden = _names("youtube_vos-valid", settings, settings.val, lambda name: True)
        videos = {
            "train": [*_videos(trained, settings, 0), *_videos(held_out, settings, FIRST_VAL_INDEX)],
            "valid": [*_videos(hidden, settings, _TEST_INDEX)],
        }
        for split, parts in _progress(videos):
            meta = {}
            for name, footage in parts:
                names = [f"{time:05}" for time in range(len(footage.frames))]
                firsts = _first_seen(footage.masks, range(0, len(names), _STEP))
                meta[name] = {
                    "objects": _youtube_vos_objects(firsts, names, unseen=split == "valid" or name in held_out)
                }
                for folder, step in ((f"{split}_all_frames", 1), (split, _STEP)):
                    _write_frames(draft / folder / "JPEGImages" / name, footage, names, step)
                _write_masks(
                    draft / split / "Annotations" / name, footage, names, _STEP, firsts if split == "valid" else None
                )
            (draft / split / "meta.json").write_text(json.dumps({"videos": meta}, indent=1))
        (draft / "train/unseen.json").write_text(json.dumps([_UNSEEN]))

    _write_set(root, settings, "YouTube-VOS", write)


def write_synthetic_lvos(root: Path, settings: SyntheticSettings) -> None:
    """Write a synthetic set in the layout of LVOS, or leave it alone where it is complete.

    `train` and `valid` have all masks, `test`, of as many videos as `valid`, those of new objects alone. Every other
    video of `valid` is on `unseen_videos.txt`. The first video of each has an object that enters late, the second, if
    there is one, an object that leaves.

    Args:
        root: The folder that will hold `train`, `valid` and `test`.
        settings: What is rendered.

    Raises:
        ConfigError: `root` holds something else, or a synthetic set of other settings, or cannot be made.
    """

    def write(draft: Path) -> None:
        videos = {
            split: [*_videos(_names(f"lvos-{split}", settings, number, lambda name: True, 8), settings, begin)]
            for split, number, begin in (
                ("train", settings.train, 0),
                ("valid", settings.val, FIRST_VAL_INDEX),
                ("test", settings.val, _TEST_INDEX),
            )
        }
        for split, parts in _progress(videos):
            meta = {}
            for name, footage in parts:
                names = [f"{1 + _STEP * time:08}" for time in range(len(footage.frames))]
                firsts = _first_seen(footage.masks, range(len(names)))
                meta[name] = {
                    "objects": {
                        str(object_id): {
                            "frame_range": {
                                "start": names[first],
                                "end": names[-1],
                                "frame_nums": str(len(names) - first),
                            }
                        }
                        for object_id, first in firsts.items()
                    }
                }
                _write_frames(draft / split / "JPEGImages" / name, footage, names, 1)
                _write_masks(
                    draft / split / "Annotations" / name, footage, names, 1, firsts if split == "test" else None
                )
            (draft / split / f"{split}_meta.json").write_text(json.dumps({"videos": meta}, indent=1))
        unseen = [name for name, _ in videos["valid"]][1::2]
        (draft / "valid/unseen_videos.txt").write_text("".join(f"{name}\n" for name in unseen))

    _write_set(root, settings, "LVOS", write)


def write_synthetic_long_time_video(root: Path, settings: SyntheticSettings) -> None:
    """Write a synthetic set in the layout of Long-Time Video, or leave it alone where it is complete.

    It has `settings.val` videos, and 20 masks of each, evenly spread, or every other one of shorter videos.

    Args:
        root: The folder that will hold `JPEGImages`, `Annotations` and `ImageSets`.
        settings: What is rendered.

    Raises:
        ConfigError: `root` holds something else, or a synthetic set of other settings, or cannot be made.
    """

    def write(draft: Path) -> None:
        names = [f"synthetic-{number:03}" for number in range(settings.val)]
        (draft / "ImageSets").mkdir(parents=True)
        (draft / "ImageSets/val.txt").write_text("".join(f"{name}\n" for name in names))
        for _, parts in _progress({"val": [*_videos(names, settings, FIRST_VAL_INDEX, late=False)]}):
            for name, footage in parts:
                frames = [f"{time:05}" for time in range(len(footage.frames))]
                _write_frames(draft / "JPEGImages" / name, footage, frames, 1)
                masks = min(_LTV_MASKS, (len(frames) + 1) // 2)
                for time in np.linspace(0, len(frames) - 1, masks).round().astype(int).tolist():
                    write_mask(draft / "Annotations" / name / f"{frames[time]}.png", footage.masks[time], VOC_PALETTE)

    _write_set(root, settings, "Long-Time Video", write)


def _write_set(root: Path, settings: SyntheticSettings, dataset: str, write: Callable[[Path], None]) -> None:
    recorded = _Recorded(**vars(settings), layout=dataset)

    def write_all(draft: Path) -> None:
        write(draft)
        (draft / "README.txt").write_text(_README.format(dataset=dataset))
        (draft / "synthetic.json").write_text(json.dumps(asdict(recorded), indent=1))

    write_whole(root, recorded, write_all)


def _progress(videos: dict[str, list[tuple[str, _Footage]]]) -> Iterator[tuple[str, Any]]:
    """The videos of each split, with a bar on a terminal."""
    console = Console(stderr=True)
    for split, parts in videos.items():
        yield split, track(parts, f"Writing {split}", console=console, disable=not console.is_terminal)


def _names(
    part: str, settings: SyntheticSettings, number: int, wanted: Callable[[str], bool], digits: int = 10
) -> list[str]:
    """Names like drawn ones, the same for one seed, sorted."""
    drawn = (hashlib.sha256(f"{part}-{settings.seed}-{k}".encode()).hexdigest()[:digits] for k in count())
    return sorted(islice(filter(wanted, drawn), number))


def _videos(
    names: Sequence[str], settings: SyntheticSettings, begin: int, *, late: bool = True
) -> Iterator[tuple[str, _Footage]]:
    """Render a video for each name: in turns, if `late`, one where an object enters late and one where one leaves."""
    for number, name in enumerate(names):
        yield name, _footage(settings, begin + number, late=late and number % 2 == 0)


def _footage(settings: SyntheticSettings, index: int, *, late: bool) -> _Footage:
    """The second half of a clip whose object has left and comes back, or the first half."""
    difficulty = replace(settings.difficulty, disappearance=1.0)
    length = settings.frames
    for attempt in range(_TRIES):
        clip = render_clip(
            settings.seed + attempt * FIRST_VAL_INDEX,
            index,
            frames=2 * length,
            height=settings.height,
            width=settings.width,
            difficulty=difficulty,
        )
        half = slice(length, None) if late else slice(length)
        footage = _Footage(clip.frames[half], clip.masks[half])
        first, last = (
            set(np.unique(mask).tolist()) - {0} for mask in footage.masks[[0, (length - 1) // _STEP * _STEP]]
        )
        if first and (last - first if late else first - last):
            return footage
    raise ConfigError(f"In none of {_TRIES} clips of {length} frames an object enters or leaves: render longer ones.")


def _first_seen(masks: NDArray[np.uint8], annotated: range) -> dict[int, int]:
    """Object id -> the first annotated frame that shows it."""
    firsts: dict[int, int] = {}
    for time in annotated:
        for object_id in np.unique(masks[time]).tolist():
            if object_id:
                firsts.setdefault(object_id, time)
    return dict(sorted(firsts.items()))


def _youtube_vos_objects(firsts: dict[int, int], names: Sequence[str], *, unseen: bool) -> dict[str, Any]:
    """The objects of a video as `meta.json` has them; of an unseen video every other one is of the unseen category."""
    return {
        str(object_id): {
            "category": _UNSEEN if unseen and number % 2 else _SEEN[object_id % len(_SEEN)],
            "frames": list(names[first::_STEP]),
        }
        for number, (object_id, first) in enumerate(firsts.items())
    }


def _write_frames(folder: Path, footage: _Footage, names: Sequence[str], step: int) -> None:
    folder.mkdir(parents=True)
    for time in range(0, len(names), step):
        Image.fromarray(footage.frames[time]).save(folder / f"{names[time]}.jpg", quality=92)


def _write_masks(
    folder: Path, footage: _Footage, names: Sequence[str], step: int, firsts: dict[int, int] | None
) -> None:
    """Write all annotated masks, or, given the first appearances, those of the objects that are new."""
    for time in range(0, len(names), step):
        mask = footage.masks[time]
        if firsts is not None:
            new = [object_id for object_id, first in firsts.items() if first == time]
            if not new:
                continue
            mask = np.where(np.isin(mask, new), mask, np.uint8(0))
        write_mask(folder / f"{names[time]}.png", mask, VOC_PALETTE)
