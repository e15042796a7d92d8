"""The worst frames of runs as rows of pictures, and the tracks that they found: what needs the data of their tests."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_vos.errors import UserError
from lightning_vos.figures.page import Gallery, Picture, PictureRow, letter
from lightning_vos.figures.run_results import Run, in_order
from lightning_vos.figures.scenes import (
    Scene,
    TrackedScene,
    data_uri,
    difference,
    image_scene,
    painted_labels,
    read_results_by_video,
    read_video_tracks,
    video_scene,
)

_Draw = Callable[[], Scene]
_ROWS = 8
_APART = 8  # frames of one sequence are shown that lie a share of 1 / 8 of it apart


class Place(NamedTuple):
    """What a row of pictures shows."""

    name: str  # of a sequence or an image
    frame: str  # its name; empty for an image
    scores: Sequence[float | None]  # of each run


def collect(runs: Sequence[Run], sources: Sequence[tuple[Run, Any]]) -> Gallery:
    """Draw the worst frames of followed objects and of images, and find the tracks of instances.

    Args:
        runs: All of the page.
        sources: Runs with the DataModules that they were tested on, each once.
    """
    rows: list[PictureRow] = []
    notes: list[str] = []
    scenes: dict[tuple[str, str], _Draw] = {}
    tracks: dict[str, Sequence[TrackedScene | None]] = {}
    folders = [run.folder for run in runs]
    for run, data in sources:
        try:
            if hasattr(data, "class_set"):
                scenes = _of_images(data, folders) | scenes
            elif hasattr(data, "videos"):
                rows += _draw_tracks(runs, data, tracks)
            else:
                scenes = _of_sequences(data, folders) | scenes
        except UserError as error:
            notes.append(left_out(run, error))
    places = [*worst_frames(runs), *worst_images(runs)] if scenes else []
    gone = [place for place in places if (place.name, place.frame) not in scenes]
    if gone and not notes:
        notes.append(f"{len(gone)} are not shown, such as {gone[0].name}: the data does not have them any more.")
    for place in places:
        draw = scenes.get((place.name, place.frame))
        if draw is None:
            continue
        title = f"{place.name}, frame {place.frame}" if place.frame else place.name
        try:
            rows.append(picture_row(title, draw(), runs, "J&F" if place.frame else "mIoU", place.scores))
        except UserError as error:
            notes.append(f"{title} is not shown: {str(error).splitlines()[0]}")
    return Gallery(rows, tracks, notes)


def left_out(run: Run, error: UserError) -> str:
    """Why there are no pictures of a run."""
    reason = str(error).splitlines()[0].rstrip(".:")
    return (
        f"Pictures of {run.name} are left out, for its data cannot be read: {reason}. The paths of its config hold "
        "from the folder that it was started in: run the report there."
    )


def _of_sequences(data: Any, folders: Sequence[Path]) -> dict[tuple[str, str], _Draw]:
    return {
        (files.name, files.frames[number].stem): partial(video_scene, files, number, folders)
        for files in data.sequences("test")
        for number in files.masks
    }


def _of_images(data: Any, folders: Sequence[Path]) -> dict[tuple[str, str], _Draw]:
    images = data.images("test")
    first = int(data.class_set.first == 0 and data.class_set.names[0] != "background")
    return {
        (name, ""): partial(image_scene, images, number, folders, first) for number, name in enumerate(images.names)
    }


def worst_frames(runs: Sequence[Run]) -> list[Place]:
    """The frames of lowest J&F of any run: first the worst of each sequence, then others far from those."""
    values: defaultdict[str, dict[str, list[float | None]]] = defaultdict(dict)
    for number, run in enumerate(runs):
        for sequence in run.sequences:
            curve = run.by_frame(sequence)
            for frame, value in zip(*curve, strict=True) if curve else ():
                values[sequence].setdefault(frame, [None] * len(runs))[number] = float(value)
    candidates: list[tuple[int, float, Place]] = []
    for sequence, frames in values.items():
        order = {frame: number for number, frame in enumerate(sorted(frames, key=in_order))}
        taken: list[int] = []
        for frame, scores in sorted(frames.items(), key=lambda item: _lowest(item[1])):
            if all(abs(order[frame] - other) >= len(order) / _APART for other in taken):
                candidates.append((len(taken), _lowest(scores), Place(sequence, frame, scores)))
                taken.append(order[frame])
    return [place for _, _, place in sorted(candidates, key=lambda item: item[:2])[:_ROWS]]


def worst_images(runs: Sequence[Run]) -> list[Place]:
    """The images of lowest mIoU of any run."""
    names = dict.fromkeys(name for run in runs for name in run.images)
    places = [Place(name, "", [run.images.get(name, {}).get("mIoU") for run in runs]) for name in names]
    return sorted(places, key=lambda place: _lowest(place.scores))[:_ROWS]


def picture_row(
    title: str, scene: Scene, runs: Sequence[Run], measure: str, scores: Sequence[float | None]
) -> PictureRow:
    """Truth, and of each run what it made of a frame and the difference."""
    pictures = [Picture("truth", data_uri(painted_labels(scene, scene.truth)))]
    for number, (run, labels, score) in enumerate(zip(runs, scene.ours, scores, strict=True)):
        if labels is None:
            continue
        name = f"{letter(number)} {run.name}" if len(runs) > 1 else "ours"
        said = name if score is None or np.isnan(score) else f"{name}, {measure} {score:.1f}"
        pictures.append(Picture(said, data_uri(painted_labels(scene, labels)), number))
        pictures.append(Picture("difference", data_uri(difference(scene, labels)), number))
    return PictureRow(title, pictures)


def _lowest(scores: Sequence[float | None]) -> float:
    return min((score for score in scores if score is not None and not np.isnan(score)), default=np.inf)


def _draw_tracks(
    runs: Sequence[Run], data: Any, tracks: dict[str, Sequence[TrackedScene | None]]
) -> Iterator[PictureRow]:
    """Add the tracks of all videos with truth, and draw the worst frame of the worst videos."""
    files = [run.folder / "results.json" for run in runs]
    if not any(path.is_file() for path in files):
        return
    results = [read_results_by_video(path) if path.is_file() else None for path in files]
    worst = []
    for number, video in enumerate(data.videos("test")):
        sample = video.load(number)
        known = read_video_tracks(sample, results) if sample.truth else None
        if known is None or not known.truth or sample.video.name in tracks:
            continue
        scenes = tracks[sample.video.name] = known.matched()
        mean = min(float(np.mean([true.iou for true in scene.truth])) for scene in scenes if scene is not None)
        worst.append((mean, number, sample, known))
    for _, _, sample, known in sorted(worst, key=lambda item: item[:2])[:_ROWS]:
        by_frame = [None if scene is None else _mean_by_frame(scene) for scene in tracks[sample.video.name]]
        together = np.array([values for values in by_frame if values is not None])
        frame = int(np.argmin(np.where(np.isfinite(together), together, np.inf).min(axis=0)))
        pixels = (sample.video.frames[frame].permute(1, 2, 0) * 255).round().byte().numpy()
        scores = [None if values is None else 100 * float(values[frame]) for values in by_frame]
        title = f"{sample.video.name}, frame {frame}"
        yield picture_row(title, known.scene(pixels, frame), runs, "IoU", scores)


def _mean_by_frame(scene: TrackedScene) -> NDArray[np.float64]:
    """(T,) the mean IoU of the true tracks; NaN where there is none."""
    shares = np.array([true.by_frame for true in scene.truth])
    present = np.isfinite(shares)
    total = np.where(present, shares, 0).sum(axis=0)
    return np.divide(total, present.sum(axis=0), out=np.full(len(total), np.nan), where=present.any(axis=0))
