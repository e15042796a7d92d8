"""Frames with their truth and with what runs made of them: what pages and figures of results show.

Shapes: H W pixels of a frame, N objects.
"""

from __future__ import annotations

import base64
import io
import json
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco

from lightning_vos.callbacks.instances import MIN_SCORE
from lightning_vos.callbacks.label_maps import picture
from lightning_vos.errors import ConfigError
from lightning_vos.evaluation.youtube_vis import Track, result_track, track_iou
from lightning_vos.io.masks import VOC_PALETTE, read_mask, read_palette, resized
from lightning_vos.io.overlay import overlay

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

MISSED, TOO_MUCH, CONFUSED, RIGHT = (40, 120, 255), (255, 45, 45), (255, 190, 0), (70, 200, 90)
"""RGB of a difference: truth that was not found, found where nothing is, another object or class, and the same."""

NOT_SCORED = 255  # in the truth of images
FOUND = 0.5  # IoU from which on a track counts as found
_WIDTH = 480  # of an embedded picture, in pixels
_QUALITY = 80


class Scene(NamedTuple):
    """One frame, its truth and what each run made of it."""

    pixels: NDArray[np.uint8]  # (H, W, 3) RGB
    truth: NDArray[np.uint8]  # (H, W) label map, 0 = background
    ours: Sequence[NDArray[np.uint8] | None]  # the same of each run; None where it has none
    palette: bytes = VOC_PALETTE


class TrueTrack(NamedTuple):
    """A true track of a video, and what a run found of it."""

    category: str
    found: str  # the category of the best match; empty without one
    score: float  # of the best match; NaN without one
    iou: float  # with the best match, in [0, 1]
    by_frame: NDArray[np.float64]  # (T,) the same in each frame; NaN where the truth is absent


class TrackedScene(NamedTuple):
    """The tracks of a video as a run has them."""

    truth: Sequence[TrueTrack]
    false: int  # of the found ones of at least `MIN_SCORE`, those that match no true track by `FOUND`


def video_scene(files: Any, number: int, folders: Sequence[Path]) -> Scene:
    """A frame of a video whose objects are followed.

    Args:
        files: A sequence of a dataset, `datamodules.readers.SequenceFiles`.
        number: Of the frame, from 0 on.
        folders: Of the runs, which hold `masks/<sequence>/<frame>.png`.

    Raises:
        UserError: The frame or one of its masks cannot be read.
        ConfigError: There is no truth of that frame.
    """
    if number not in files.masks:
        raise ConfigError(f"Frame {number} of {files.name} has no truth: {len(files.masks)} frames have some.")
    paths = [folder / "masks" / files.name / f"{files.frames[number].stem}.png" for folder in folders]
    ours = [read_mask(path, files.size) if path.is_file() else None for path in paths]
    palette = read_palette(files.masks[number]) or VOC_PALETTE
    return Scene(files.frame(number), files.labels(number), ours, palette)


def image_scene(images: Any, number: int, folders: Sequence[Path], first: int) -> Scene:
    """An image with classes.

    Args:
        images: Those of a dataset's split, `datamodules.labelled_images.ImageSet`.
        number: Of the image.
        folders: Of the runs, which hold `masks/<image>.png`.
        first: The value of the first class where there is no background, and so the value 0 is one; else 0.

    Raises:
        UserError: The image or one of its masks cannot be read.
        ConfigError: There is no truth of that image.
    """
    truth = images.mask(number)
    if truth is None:
        raise ConfigError(f"The image {images.names[number]} has no label map.")
    pixels = images.read(number)
    if pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        pixels = picture(torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1), truth.shape)
    paths = [folder / "masks" / f"{images.names[number]}.png" for folder in folders]
    ours = [read_mask(path, truth.shape) if path.is_file() else None for path in paths]

    def shifted(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.where(labels == NOT_SCORED, NOT_SCORED, labels + np.uint8(first)).astype(np.uint8)

    return Scene(pixels, shifted(truth), [None if labels is None else shifted(labels) for labels in ours])


@dataclass(frozen=True)
class VideoTracks:
    """The tracks of one video, true and found.

    Attributes:
        truth: Its true tracks, crowds left out.
        categories: The name of the category of each.
        found: Of each run its results, best first; None of a run that finds no instances.
        found_categories: The same, the names of their categories.
    """

    truth: Sequence[Track]
    categories: Sequence[str]
    found: Sequence[Sequence[Track] | None]
    found_categories: Sequence[Sequence[str]]

    @cached_property
    def shares(self) -> list[NDArray[np.float64]]:
        """Of each run the (D, G) IoU of its results with the true tracks."""
        return [track_iou(found or (), self.truth) for found in self.found]

    def matched(self) -> list[TrackedScene | None]:
        """What each run found of each true track: the result of highest IoU, whatever its category."""
        return [None if found is None else self._matched(run, found) for run, found in enumerate(self.found)]

    def scene(self, pixels: NDArray[np.uint8], frame: int) -> Scene:
        """The tracks in one frame: those that match have the colour of the true one, false ones another."""
        size = (pixels.shape[0], pixels.shape[1])
        truth = _painted(size, [(number, track.masks[frame]) for number, track in enumerate(self.truth, start=1)])
        ours = []
        for run, found in enumerate(self.found):
            labels = {self._best(run, number): number + 1 for number in range(len(self.truth))}
            kept = [
                (labels.get(number, len(self.truth) + 1 + number), track.masks[frame])
                for number, track in enumerate(found or ())
                if number in labels or track.score >= MIN_SCORE
            ]
            ours.append(None if found is None else _painted(size, kept[::-1]))
        return Scene(pixels, truth, ours)

    def _best(self, run: int, number: int) -> int | None:
        """The result of a run that overlaps a true track most; None if none does."""
        shares = self.shares[run][:, number]
        return int(shares.argmax()) if shares.any() else None

    def _matched(self, run: int, found: Sequence[Track]) -> TrackedScene:
        shares, tracks = self.shares[run], []
        for number, (true, category) in enumerate(zip(self.truth, self.categories, strict=True)):
            best = self._best(run, number)
            if best is None:
                tracks.append(TrueTrack(category, "", np.nan, 0.0, _by_frame(true, None)))
            else:
                name, by_frame = self.found_categories[run][best], _by_frame(true, found[best])
                tracks.append(TrueTrack(category, name, found[best].score, float(shares[best, number]), by_frame))
        sure = [number for number, track in enumerate(found) if track.score >= MIN_SCORE]
        return TrackedScene(tracks, sum(not (shares[number] >= FOUND).any() for number in sure))


def read_video_tracks(sample: Any, results: Sequence[Mapping[int, Sequence[Mapping[str, Any]]] | None]) -> VideoTracks:
    """The tracks of a video.

    Args:
        sample: A `ScoredInstanceVideo` with truth.
        results: Of each run what `read_results_by_video` gives; None of one that finds no instances.
    """
    names = sample.video.categories
    true = [
        (track, names[category])
        for (_, category), tracks in sample.truth.items()
        for track in tracks
        if not track.crowd
    ]
    of_runs = [None if found is None else found.get(sample.video.video_id, ()) for found in results]
    entries = [None if found is None else sorted(found, key=lambda entry: -entry["score"]) for found in of_runs]
    return VideoTracks(
        truth=[track for track, _ in true],
        categories=[name for _, name in true],
        found=[
            None if found is None else [result_track(entry["segmentations"], entry["score"]) for entry in found]
            for found in entries
        ],
        found_categories=[[names.get(entry["category_id"], "?") for entry in found or ()] for found in entries],
    )


def read_results_by_video(path: Path) -> dict[int, list[dict[str, Any]]]:
    """The results that a test of instances left, by the id of their video.

    Raises:
        ConfigError: The file is broken.
    """
    found: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
    try:
        for entry in json.loads(path.read_text(encoding="utf-8")):
            found[entry["video_id"]].append(entry)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}\n  expected what `lightning_vos test` writes") from error
    return dict(found)


def painted_labels(scene: Scene, labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The frame with a label map over it, (H, W, 3) RGB."""
    # The palettes of the benchmarks are dark, so that objects would be lost in dark frames.
    bright = 255 * np.sqrt(np.frombuffer(scene.palette, np.uint8) / 255)
    return overlay(scene.pixels, np.where(labels == NOT_SCORED, 0, labels), bright.round().astype(np.uint8).tobytes())


def difference(scene: Scene, labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The frame in grey with what a label map has right, and what it has not, in the colours of this module.

    Returns:
        (H, W, 3) RGB.
    """
    truth, counted = scene.truth, scene.truth != NOT_SCORED
    picture_ = np.repeat(scene.pixels.mean(axis=2, keepdims=True), 3, axis=2) * 0.55 + 60
    wrong = counted & (truth != labels)
    kinds = (
        (RIGHT, 0.35, counted & (truth == labels) & (truth > 0)),
        (MISSED, 0.75, wrong & (labels == 0)),
        (TOO_MUCH, 0.75, wrong & (truth == 0)),
        (CONFUSED, 0.75, wrong & (truth > 0) & (labels > 0)),
    )
    for colour, opacity, inside in kinds:
        picture_[inside] += opacity * (np.array(colour) - picture_[inside])
    return picture_.round().clip(0, 255).astype(np.uint8)


def data_uri(pixels: NDArray[np.uint8]) -> str:
    """A picture as the `src` of an HTML image: a JPEG at most 480 pixels wide."""
    if pixels.shape[1] > _WIDTH:
        size = (_WIDTH, max(1, round(pixels.shape[0] * _WIDTH / pixels.shape[1])))
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def object_ious(scene: Scene, labels: NDArray[np.uint8]) -> dict[int, float]:
    """Object id -> IoU, of the objects that the truth shows."""
    ids = [value for value in np.unique(scene.truth).tolist() if value not in (0, NOT_SCORED)]
    return {
        value: float(
            ((scene.truth == value) & (labels == value)).sum() / ((scene.truth == value) | (labels == value)).sum()
        )
        for value in ids
    }


def _by_frame(true: Track, found: Track | None) -> NDArray[np.float64]:
    shares = np.full(len(true.masks), np.nan)
    for frame, mask in enumerate(true.masks):
        if mask is None or not true.pixels[frame]:
            continue
        ours = None if found is None or frame >= len(found.masks) else found.masks[frame]
        shares[frame] = 0.0 if ours is None else float(np.asarray(coco.iou([ours], [mask], [0]))[0, 0])
    return shares


def _painted(size: tuple[int, int], masks: Sequence[tuple[int, Any]]) -> NDArray[np.uint8]:
    labels = np.zeros(size, np.uint8)
    for label, mask in masks:
        if mask is not None:
            inside = resized(np.ascontiguousarray(coco.decode(mask)), size).astype(bool)
            labels[inside] = min(label, NOT_SCORED - 1)
    return labels
