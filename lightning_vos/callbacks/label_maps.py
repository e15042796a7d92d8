"""What a test or a prediction of whole images leaves: label maps, scores, overlays; every image as it comes.

Shapes: H W pixels of an image on disk, h w of what the network saw, C bands.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from lightning.pytorch import Callback
from rich.console import Console

from lightning_vos.callbacks.environment import write_environment
from lightning_vos.callbacks.results import gathered
from lightning_vos.callbacks.run_files import run_folder
from lightning_vos.errors import ConfigError
from lightning_vos.evaluation.scores import write_rows
from lightning_vos.evaluation.semantic import measures
from lightning_vos.io.class_maps import write_class_maps
from lightning_vos.io.masks import resized, write_mask
from lightning_vos.io.overlay import overlay, write_image
from lightning_vos.io.writing import written_beside

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import lightning.pytorch as L
    from numpy.typing import NDArray
    from torch import Tensor

    from lightning_vos.evaluation.scores import Scores
    from lightning_vos.evaluation.semantic import ClassSet
    from lightning_vos.structures import ScoredImage

_RECORD = "made_with.json"
_UNKNOWN = 255
_VALUES = 256  # of a label map
_COLOURS = (3, 2, 1)  # bands of Sentinel-2 that are red, green and blue
_RANGE = (2, 98)  # percentiles of a band that are painted black and white


class MakesLabelMaps(Protocol):
    """What the callbacks here ask of a LightningModule that segments images."""

    scores: Scores | None  # of the last test, if there was any truth

    def protocol(self) -> str:
        """One sentence: what label maps are of, and how they are made."""

    def made_with(self) -> Mapping[str, Any]:
        """What label maps depend on, as plain values: weights and settings."""


class LabelMapCallback(Callback):
    """A callback of `test` and `predict`, called once an image."""

    def on_label_map(self, trainer: L.Trainer, sample: ScoredImage, labels: NDArray[np.uint8]) -> None:
        """Called with an image and its (H, W) label map, whose values are those of the dataset's class set."""

    def is_there(self, trainer: L.Trainer, name: str) -> bool:
        """Whether there is nothing left to write for the image of that name."""
        return True


def tell_label_map(trainer: L.Trainer, sample: ScoredImage, labels: NDArray[np.uint8]) -> None:
    """Hand the label map of an image to the callbacks of a trainer."""
    for callback in _of(trainer):
        callback.on_label_map(trainer, sample, labels)


def is_there(trainer: L.Trainer, name: str) -> bool:
    """Whether no callback of a trainer has anything left to write for the image of that name."""
    return all(callback.is_there(trainer, name) for callback in _of(trainer))


def _of(trainer: L.Trainer) -> list[LabelMapCallback]:
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, LabelMapCallback)]


class LabelMapWriter(LabelMapCallback):
    """Writes an indexed PNG an image, of the image's size on disk and with the colours of PASCAL VOC.

    `predict` leaves alone what is there already, so that it goes on where it was stopped, with any number of processes;
    what was made with other weights or settings is refused.

    Args:
        folder: Where they are written, in `masks`, with `protocol.txt` and what they were made with beside that; the
            run's folder where None.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder

    def path(self, trainer: L.Trainer, name: str) -> Path:
        """The file of an image."""
        return self._folder(trainer) / "masks" / f"{name}.png"

    def is_there(self, trainer: L.Trainer, name: str) -> bool:
        """Whether the label map of an image is there; one that is, is whole."""
        return self.path(trainer, name).is_file()

    def on_label_map(self, trainer: L.Trainer, sample: ScoredImage, labels: NDArray[np.uint8]) -> None:
        """Write the label map of an image."""
        write_mask(self.path(trainer, sample.image.name), labels)

    def on_test_epoch_start(self, trainer: L.Trainer, pl_module: MakesLabelMaps) -> None:  # type: ignore[override]
        """Note what the label maps are made with; errors as `on_predict_epoch_start`."""
        self._note(trainer, pl_module)

    def on_predict_epoch_start(self, trainer: L.Trainer, pl_module: MakesLabelMaps) -> None:  # type: ignore[override]
        """Note what the label maps are made with.

        Raises:
            ConfigError: The folder holds PNGs that were made with something else.
        """
        self._note(trainer, pl_module)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say where the label maps are."""
        self._say(trainer)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say where the label maps are."""
        self._say(trainer)

    def _folder(self, trainer: L.Trainer) -> Path:
        return run_folder(trainer) if self.folder is None else Path(self.folder)

    def _note(self, trainer: L.Trainer, pl_module: MakesLabelMaps) -> None:
        folder = self._folder(trainer)
        made_with = json.loads(json.dumps(pl_module.made_with(), default=str))
        record = folder / _RECORD
        there = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else None
        if there != made_with and next((folder / "masks").glob("*.png"), None) is not None:
            differing = "nothing that says how" if there is None else _difference(there, made_with)
            raise ConfigError(
                f"{folder} holds label maps that were made otherwise.\n"
                f"  found {differing}\n"
                "To go on with them, use the weights and settings that they were made with. To make others, leave the\n"
                "folder of the run to the command, or name another one: --trainer.callbacks.folder."
            )
        trainer.strategy.barrier("all ranks have looked")
        if trainer.is_global_zero:
            _write(folder / "protocol.txt", pl_module.protocol().rstrip("."))
            _write(record, json.dumps(made_with, indent=1))

    def _say(self, trainer: L.Trainer) -> None:
        if trainer.is_global_zero:
            Console().print(f"Label maps are in {self._folder(trainer) / 'masks'}", highlight=False, soft_wrap=True)


class ClassMapWriter(LabelMapCallback):
    """Writes `maps/<image>.npz` in the run's folder: what other thresholds can be tried on by `score --sweep`.

    Args:
        folder: Where they are written, in `maps`; the run's folder where None.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder

    def on_class_maps(
        self, trainer: L.Trainer, sample: ScoredImage, values: Sequence[int], maps: NDArray[np.floating]
    ) -> None:
        """Write the maps of an image: (k, h, w) in [0, 1], and what label maps call its k classes."""
        write_class_maps(self._path(trainer, sample.image.name), values, maps)

    def is_there(self, trainer: L.Trainer, name: str) -> bool:
        """Whether the maps of an image are there."""
        return self._path(trainer, name).is_file()

    def _path(self, trainer: L.Trainer, name: str) -> Path:
        return (run_folder(trainer) if self.folder is None else Path(self.folder)) / "maps" / f"{name}.npz"


class LabelMapScoreWriter(LabelMapCallback):
    """Prints the scores of a test with what they measure, and writes them in percent into the run's folder.

    That is `summary.csv`, `classes.csv` and `images.csv`; `confusion.csv` has pixels, a row for each true class. What
    it ran on is in `environment.json`.
    """

    def __init__(self) -> None:
        self._images: dict[int, tuple[str, NDArray[np.int64]]] = {}

    def on_label_map(self, trainer: L.Trainer, sample: ScoredImage, labels: NDArray[np.uint8]) -> None:
        """Count the pixels of an image by their true and predicted value."""
        if sample.truth is not None and sample.truth.mask is not None:
            pairs = sample.truth.mask.cpu().numpy().astype(np.uint16) << 8 | labels
            self._images[sample.number] = sample.image.name, np.stack(np.unique(pairs, return_counts=True), axis=1)

    def on_test_end(self, trainer: L.Trainer, pl_module: MakesLabelMaps) -> None:  # type: ignore[override]
        """Gather what all ranks counted; the first one writes and prints the scores."""
        images = gathered(self._images)  # a collective call: every rank makes it
        self._images = {}
        if not trainer.is_global_zero:
            return
        scores, say = pl_module.scores, partial(Console().print, highlight=False, soft_wrap=True, markup=False)
        folder = run_folder(trainer)
        write_environment(folder, trainer.strategy.root_device)
        if scores is None:
            say("No mIoU: this split has no public masks.")
            return
        write_rows(folder / "summary.csv", ("images",), {("all",): scores.summary})
        write_rows(folder / "classes.csv", ("class",), {(name,): row for name, row in scores.categories.items()})
        class_set: ClassSet = trainer.datamodule.class_set  # type: ignore[attr-defined]
        total, by_image = np.zeros((_VALUES, _VALUES), np.int64), {}
        for _, (name, counted) in sorted(images.items()):
            counts = np.zeros(_VALUES * _VALUES, np.int64)
            counts[counted[:, 0]] = counted[:, 1]
            by_image[name,] = measures(counts.reshape(total.shape), class_set)[0]
            total += counts.reshape(total.shape)
        write_rows(folder / "images.csv", ("image",), by_image)
        confusion = total[class_set.values, class_set.values].tolist()
        rows = {
            (name,): dict(zip(class_set.names, row, strict=True))
            for name, row in zip(class_set.names, confusion, strict=True)
        }
        write_rows(folder / "confusion.csv", ("class",), rows)
        say(", ".join(f"{name} {value:.1f} %" for name, value in scores.summary.items()), style="bold")
        say(scores.variant)
        say(f"Scores are in {folder}")


class LabelMapOverlay(LabelMapCallback):
    """Writes `overlays/<image>.jpg` in the run's folder: an image with its label map over it.

    The image is what the network saw, so that its colours are about right. Of sensors with more than three bands, bands
    4, 3 and 2 are painted, which are red, green and blue of Sentinel-2.
    """

    def on_label_map(self, trainer: L.Trainer, sample: ScoredImage, labels: NDArray[np.uint8]) -> None:
        """Paint an image."""
        class_set: ClassSet = trainer.datamodule.class_set  # type: ignore[attr-defined]
        write_image(self._path(trainer, sample.image.name), painted_labels(sample.image.pixels, labels, class_set))

    def is_there(self, trainer: L.Trainer, name: str) -> bool:
        """Whether the image was painted."""
        return self._path(trainer, name).is_file()

    def _path(self, trainer: L.Trainer, name: str) -> Path:
        return run_folder(trainer) / "overlays" / f"{name}.jpg"


def painted_labels(pixels: Tensor, labels: NDArray[np.uint8], class_set: ClassSet) -> NDArray[np.uint8]:
    """An image with its label map over it; background and what belongs to no class are left as they are.

    Args:
        pixels: (C, h, w) in any normalisation.
        labels: (H, W) label map.
        class_set: What its values stand for.

    Returns:
        (H, W, 3) RGB.
    """
    # The first class of sets without background has the value 0, which is not painted.
    shift = class_set.first == 0 and class_set.names[0] != "background"
    shown = np.where(labels == _UNKNOWN, 0, labels.astype(np.int64) + shift)
    return overlay(picture(pixels, (labels.shape[0], labels.shape[1])), shown)


def picture(pixels: Tensor, size: tuple[int, int]) -> NDArray[np.uint8]:
    """An image that was normalised somehow, as RGB.

    Args:
        pixels: (C, h, w).
        size: (H, W) of the picture.

    Returns:
        (H, W, 3).
    """
    bands = len(pixels)
    planes = pixels.cpu().float().numpy()[list(_COLOURS if bands > max(_COLOURS) else (0, min(1, bands - 1), -1))]
    low, high = (value[:, None, None] for value in np.percentile(planes, _RANGE, axis=(1, 2)))
    shares = ((planes - low) / np.maximum(high - low, 1e-6)).clip(0, 1)
    rgb = np.ascontiguousarray((255 * shares).round().astype(np.uint8).transpose(1, 2, 0))
    return rgb if rgb.shape[:2] == size else resized(rgb, size)


def _write(path: Path, text: str) -> None:
    with written_beside(path) as temporary:
        temporary.write_text(f"{text}\n", encoding="utf-8")


def _difference(there: Any, made_with: Any) -> str:
    """The first setting in which two records differ."""
    if isinstance(there, dict) and isinstance(made_with, dict):
        for key in dict.fromkeys([*there, *made_with]):
            if there.get(key) != made_with.get(key):
                inside = _difference(there.get(key), made_with.get(key))
                return f"{key}{'.' if '=' in inside.split(' ')[0] else ' '}{inside}"
    return f"{there}, expected {made_with}"
