"""What a test of found instances leaves: the JSON of the results, tables of scores, pictures."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch import Callback
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as coco
from rich.console import Console
from rich.table import Table

from lightning_vos.callbacks.environment import write_environment
from lightning_vos.callbacks.run_files import run_folder
from lightning_vos.evaluation.scores import write_rows
from lightning_vos.io.masks import VOC_PALETTE
from lightning_vos.io.overlay import overlay
from lightning_vos.io.writing import written_beside

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    import lightning.pytorch as L
    from numpy.typing import NDArray
    from torch import Tensor

    from lightning_vos.models.taformer.module import TAFormer
    from lightning_vos.structures import InstanceResult

MIN_SCORE = 0.3
"""Score from which on an instance is painted."""

_MOST_PAINTED = 255  # colours of a palette, less the background


class InstanceWriter(Callback):
    """Writes `results.json` in the run's folder, as the server and `lightning_vos score` take it.

    After a test whose truth is public it prints the scores and writes `summary.csv` and `categories.csv`, in percent.
    """

    def on_test_end(self, trainer: L.Trainer, pl_module: TAFormer) -> None:  # type: ignore[override]
        """Write results and scores."""
        self._write(trainer, pl_module)
        if not trainer.is_global_zero:
            return
        folder, console, scores = run_folder(trainer), Console(), pl_module.scores
        if scores is None:
            console.print("No scores: this split has no public truth.", highlight=False)
            return
        write_environment(folder, pl_module.device)
        write_rows(folder / "summary.csv", ("videos",), {("all",): scores.summary})
        write_rows(folder / "categories.csv", ("category",), {(name,): row for name, row in scores.categories.items()})
        table = Table("all videos", "%")
        for name, value in scores.summary.items():
            table.add_row(name, "-" if math.isnan(value) else f"{value:.1f}")
        console.print(table)
        console.print(f"Scores are in {folder / 'summary.csv'}", highlight=False, soft_wrap=True)

    def on_predict_end(self, trainer: L.Trainer, pl_module: TAFormer) -> None:  # type: ignore[override]
        """Write results."""
        self._write(trainer, pl_module)

    def _write(self, trainer: L.Trainer, pl_module: TAFormer) -> None:
        if not trainer.is_global_zero:
            return
        entries = (
            entry for video in pl_module.videos for entry in result_entries(video.video_id, video.name, video.results)
        )
        path = run_folder(trainer) / "results.json"
        write_results(path, entries)
        Console().print(f"Results are in {path}", highlight=False, soft_wrap=True)


def result_entries(video_id: int, name: str, results: Iterable[InstanceResult]) -> Iterator[dict[str, Any]]:
    """The results of a video as the evaluation of YouTube-VIS takes them.

    Args:
        video_id: Of the video.
        name: Of the video; SeqFormer writes it as well, the evaluation passes over it.
        results: In the order in which they are to be.
    """
    for result in results:
        yield {
            "video_id": video_id,
            "video_name": name,
            "score": result.score,
            "category_id": result.category,
            "segmentations": list(result.masks),
        }


def write_results(path: Path, entries: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSON of results, which appears at once and whole."""
    with written_beside(path) as temporary:
        temporary.write_text(json.dumps(list(entries)), encoding="utf-8")


def painted_instances(
    frame: Tensor,
    number: int,
    results: Sequence[InstanceResult],
    categories: Mapping[int, str],
    min_score: float = MIN_SCORE,
) -> NDArray[np.uint8]:
    """A frame with its instances over it: the colour is the identity, and category and score stand beside it.

    Args:
        frame: (3, H, W) in [0, 1].
        number: Of the frame in its video.
        results: Of the whole video. An instance is painted once, as the best of its categories; where instances
            overlap, the one of higher score is in front.
        categories: Id -> name.
        min_score: Of the instances that are painted.

    Returns:
        (H, W, 3) RGB.
    """
    pixels = (frame.permute(1, 2, 0) * 255).round().to(torch.uint8).cpu().numpy()
    best: dict[int, InstanceResult] = {}
    for result in sorted(results, key=lambda result: -result.score):
        if result.score >= min_score:
            best.setdefault(result.instance, result)
    labels = np.zeros(pixels.shape[:2], np.uint8)
    tags: list[tuple[int, int, int, str]] = []
    for label, result in reversed(list(enumerate(list(best.values())[:_MOST_PAINTED], start=1))):
        mask = result.masks[number]
        inside = None if mask is None else coco.decode(mask).astype(bool)
        if inside is not None and inside.any():
            labels[inside] = label
            left, top = int(inside.any(axis=0).argmax()), int(inside.any(axis=1).argmax())
            tags.append((label, left, top, f"{categories.get(result.category, result.category)} {result.score:.2f}"))
    picture = Image.fromarray(overlay(pixels, labels, VOC_PALETTE))
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(max(10, pixels.shape[0] // 24))
    for label, left, top, text in tags:
        colour = tuple(VOC_PALETTE[3 * label : 3 * label + 3])
        _, _, width, height = draw.textbbox((0, 0), text, font=font)
        x, y = max(0, min(left, picture.width - int(width))), max(0, top - int(height))
        draw.rectangle((x, y, x + width, y + height), fill=colour)
        draw.text((x, y), text, font=font, fill="black" if sum(colour) > 300 else "white")
    return np.asarray(picture)
