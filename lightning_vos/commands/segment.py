"""`lightning_vos segment`: a person's own video, from the mask of its first frame or by finding instances."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lightning_vos.commands.inputs import (
    add_input_options,
    check_size,
    choose_device,
    read_inputs,
    read_video,
)
from lightning_vos.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from lightning_vos.models.taformer.inference import InferenceSettings
    from lightning_vos.models.taformer.network import TAFormerNetwork

_FRAMES_PER_SECOND = 12  # of the overlay where the video is a folder


def segment(
    video: Path,
    mask: Path,
    output: Path,
    weights: Path | None = None,
    *,
    resize_masks: bool = False,
    size: tuple[int, int] | None = None,
    device: str | None = None,
    flip: bool = False,
    scales: Sequence[float] = (1.0,),
) -> None:
    """Segment the objects of a mask through a whole video; writes masks/<frame>.png and overlay.mp4 under `output`.

    Args:
        video: As `read_inputs`.
        mask: As `read_inputs`.
        output: The folder to write.
        weights: A checkpoint of a run, or a published file; those that the package came with where None.
        resize_masks: As `read_inputs`.
        size: (h, w) that the network works at, instead of the method's own choice.
        device: Where to run, such as cpu, cuda or mps; the best there is where None.
        flip: As `Tracker`.
        scales: As `Tracker`.

    Raises:
        UserError: if an input is missing, unreadable or does not fit the others.
    """
    check_size(size)
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

    from lightning_vos.callbacks.results import painted
    from lightning_vos.io.masks import write_mask
    from lightning_vos.io.video import VideoFile, VideoWriter
    from lightning_vos.pretrained import load_pretrained
    from lightning_vos.published import load_network
    from lightning_vos.vos.track import Remembering, track

    if (output / "masks").is_dir() and any((output / "masks").iterdir()):
        raise ConfigError(f"{output / 'masks'} holds masks already. Name another --output, or remove them.")
    frames, names, prompts, palette = read_inputs(video, mask, resize_masks=resize_masks)
    rate = frames.frames_per_second if isinstance(frames, VideoFile) else _FRAMES_PER_SECOND
    stated = frames.stated_frames if isinstance(frames, VideoFile) else len(names)
    network = (load_pretrained() if weights is None else load_network(weights)).to(choose_device(device))
    console = Console()
    console.print(
        f"Following {_what(prompts)}, by {weights or 'the small model of the package (others: --weights FILE)'}.",
        highlight=False,
        soft_wrap=True,
    )
    remembering = Remembering(frames)
    number = -1
    with (
        VideoWriter(output / "overlay.mp4", frames.size, rate) as writer,
        Progress(*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn()) as progress,
    ):
        task = progress.add_task("segment", total=stated)
        for number, prediction in enumerate(track(network, remembering, prompts, size=size, flip=flip, scales=scales)):
            name = names[number] if names else f"{number:05d}"
            write_mask(output / "masks" / f"{name}.png", prediction.labels.cpu().numpy(), palette)
            writer.write(painted(remembering.latest, prediction, palette))
            progress.advance(task)
    console.print(
        f"{number + 1} masks are in {output / 'masks'}; to look at: {output / 'overlay.mp4'}",
        highlight=False,
        soft_wrap=True,
    )


def _what(prompts: Mapping[int, NDArray[np.uint8]]) -> str:
    """The objects that are given, in words."""
    from lightning_vos.io.png import object_ids

    parts = [
        f"{', '.join(map(str, object_ids(labels))) or 'nothing'} of frame {number}"
        for number, labels in sorted(prompts.items())
    ]
    return f"{'; '.join(parts[:3])}{f' ; and more in {len(parts) - 3} frames' if len(parts) > 3 else ''}"


def find(
    video: Path,
    output: Path,
    weights: Path | None = None,
    *,
    categories: Path | None = None,
    window: int | None = None,
    device: str | None = None,
) -> None:
    """Find the instances of a video; writes results.json and overlay.mp4 under `output`.

    Args:
        video: A folder of frames or a video file.
        output: The folder to write.
        weights: A checkpoint of a run, or a published file, of TAFormer or SeqFormer.
        categories: A JSON with the categories that the weights know, such as the annotations they were trained on;
            None: what the checkpoint says, and of published files those of YouTube-VIS 2019.
        window: Frames that the network sees at a time, instead of what the checkpoint says.
        device: As `segment`.

    Raises:
        UserError: if an input is missing, unreadable or does not fit the others.
    """
    if weights is None:
        raise ConfigError(
            "segment was given no MASK. The weights of the package follow the objects of one, say of the first frame:\n"
            "  lightning_vos segment VIDEO MASK --output DIR\n"
            "Without, instances are found, by weights of TAFormer or SeqFormer: --weights FILE."
        )
    from rich.console import Console

    from lightning_vos.callbacks.instances import MIN_SCORE, painted_instances, result_entries, write_results
    from lightning_vos.io.video import VideoFile, VideoWriter
    from lightning_vos.models.taformer.inference import find_instances
    from lightning_vos.published import load_instance_network

    if (output / "results.json").exists():
        raise ConfigError(f"{output / 'results.json'} is there already. Name another --output, or remove it.")
    frames = read_video(video)
    network = load_instance_network(weights).to(choose_device(device))
    said = _of_checkpoint(weights, network, categories, window)
    console = Console()
    with console.status("finding instances"):
        outputs = dict(enumerate(said.categories, start=network.first_class))
        found = find_instances(network, frames, frames.size, outputs, said.settings)
    rate = frames.frames_per_second if isinstance(frames, VideoFile) else _FRAMES_PER_SECOND
    with VideoWriter(output / "overlay.mp4", frames.size, rate) as writer:
        for number, frame in enumerate(frames):
            writer.write(painted_instances(frame, number, found.results, said.categories))
    entries = result_entries(1, video.stem, found.results)
    write_results(
        output / "results.json", [entry | {"category": said.categories[entry["category_id"]]} for entry in entries]
    )
    many = {result.instance for result in found.results if result.score >= MIN_SCORE}
    console.print(
        f"Classes: {said.source}.\n"
        f"{len(many)} instances with a score of {MIN_SCORE} or more in {found.frames} frames; all results are in "
        f"{output / 'results.json'}; to look at: {output / 'overlay.mp4'}",
        highlight=False,
        soft_wrap=True,
    )


class _OfCheckpoint(NamedTuple):
    """What weights were made for."""

    categories: Mapping[int, str]  # id -> name, in the order of the outputs
    source: str  # of the categories
    settings: InferenceSettings


def _of_checkpoint(weights: Path, network: TAFormerNetwork, stated: Path | None, window: int | None) -> _OfCheckpoint:
    """Read which categories weights know, and how a video is shown to them.

    Raises:
        ConfigError: if the categories that are stated cannot be those, or the window is none.
        CheckpointError: if nobody says which categories they know.
    """
    import json
    from dataclasses import replace

    from datamodules.youtube_vis_classes import CATEGORIES
    from lightning_vos.io.checkpoints import read_checkpoint
    from lightning_vos.models.taformer.inference import InferenceSettings

    content = read_checkpoint(weights)
    arguments: Mapping[str, Any] = content.get("model", {}).get("init_args", {}) if "model" in content else {}
    try:
        settings = InferenceSettings(**arguments.get("inference", {}))
        settings = settings if window is None else replace(settings, window=window)
    except ValueError as error:
        shared = InferenceSettings(**arguments.get("inference", {})).overlap
        raise ConfigError(
            f"--window is {window}, expected {shared + 1} or more: a window shares {shared} frames with the one before."
        ) from error
    if stated is not None:
        try:
            rows = json.loads(stated.read_bytes())["categories"]
            names = {int(row["id"]): str(row["name"]) for row in sorted(rows, key=lambda row: int(row["id"]))}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{stated} says no categories: {type(error).__name__} {error}\n"
                '  expected a JSON with "categories": [{"id": 1, "name": "person"}, ...]'
            ) from error
        if not names or len(names) < len(rows):
            raise ConfigError(
                f"{stated} says no categories: {len(rows)} with {len(names)} ids.\n"
                "  expected one or more, each with an id of its own"
            )
        if content.get("categories", names) != names:
            raise ConfigError(
                f"{stated} has other categories than {weights} was trained on: {len(names)} "
                f"({', '.join(list(names.values())[:4])}, ...), not {len(content['categories'])} "
                f"({', '.join(list(content['categories'].values())[:4])}, ...).\nLeave --categories out."
            )
        source = f"those of {stated}"
    elif "categories" in content:
        names, source = content["categories"], "those of the training"
    else:
        names = dict(enumerate(CATEGORIES[2019], start=1))
        source = "those of YouTube-VIS 2019, for the file names none (others: --categories JSON)"
    if network.first_class + len(names) > network.classes:
        raise CheckpointError(
            f"{weights} has {network.classes} outputs, the first class is output {network.first_class}, but there are "
            f"{len(names)} categories: {source}.\nName the JSON that it was trained with: --categories JSON."
        )
    return _OfCheckpoint(names, source, settings)


def main(args: list[str]) -> None:
    """Run `lightning_vos segment` with the words that follow it.

    Raises:
        UserError: The words ask for something that cannot be done.
    """
    parser = argparse.ArgumentParser(
        "lightning_vos segment",
        description="Segment the objects of a mask through a whole video. Without MASK, and with weights of TAFormer or"
        " SeqFormer: find the instances of the classes that they know.",
        allow_abbrev=False,
    )
    add_input_options(
        parser,
        needs_mask=False,
        weights="a checkpoint of a run, or a published file (with MASK: the small model of the package)",
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="gets overlay.mp4, and masks/ or results.json"
    )
    parser.add_argument("--flip", action="store_true", help="average with the flipped video: twice the time and memory")
    parser.add_argument(
        "--scales", type=float, nargs="+", default=(1.0,), metavar="S", help="average over scales of the working size"
    )
    parser.add_argument(
        "--window", type=int, metavar="N", help="without MASK: frames that are seen at a time, for long videos"
    )
    parser.add_argument(
        "--categories", type=Path, metavar="JSON", help="without MASK: the annotations that the weights were trained on"
    )
    words = parser.parse_intermixed_args(args)  # MASK may stand behind options
    following = {name: getattr(words, name) for name in ("resize_masks", "size", "flip", "scales")}
    finding = {name: getattr(words, name) for name in ("window", "categories")}
    others = finding if words.mask else following
    unused = [name for name, value in others.items() if value != parser.get_default(name)]
    if unused:
        raise ConfigError(
            f"--{unused[0].replace('_', '-')} is for videos {'without' if words.mask else 'with'} a MASK of the "
            "objects to follow.\nLeave it out."
        )
    import torch

    torch.set_flush_denormal(True)  # numbers next to nothing, of sharp attention, cost a CPU half its speed
    if words.mask:
        segment(words.video, words.mask, words.output, words.weights, device=words.device, **following)
    else:
        find(words.video, words.output, words.weights, device=words.device, **finding)
