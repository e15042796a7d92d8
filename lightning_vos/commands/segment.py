"""`lightning_vos segment`: masks and an overlay of a person's own video, from the mask of its first frame."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_vos.commands.inputs import add_input_options, check_settings, choose_device, read_inputs
from lightning_vos.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

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
        weights: A checkpoint of a run, or a published file.
        resize_masks: As `read_inputs`.
        size: (h, w) that the network works at, instead of the method's own choice.
        device: Where to run, such as cpu, cuda or mps; the best there is where None.
        flip: As `Tracker`.
        scales: As `Tracker`.

    Raises:
        UserError: if an input is missing, unreadable or does not fit the others.
    """
    weights = check_settings("segment", weights, size)
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

    from lightning_vos.callbacks.results import painted
    from lightning_vos.io.masks import write_mask
    from lightning_vos.io.video import VideoFile, VideoWriter
    from lightning_vos.published import load_network
    from lightning_vos.vos.track import Remembering, track

    if (output / "masks").is_dir() and any((output / "masks").iterdir()):
        raise ConfigError(f"{output / 'masks'} holds masks already. Name another --output, or remove them.")
    frames, names, prompts, palette = read_inputs(video, mask, resize_masks=resize_masks)
    rate = frames.frames_per_second if isinstance(frames, VideoFile) else _FRAMES_PER_SECOND
    network = load_network(weights).to(choose_device(device))
    remembering = Remembering(frames)
    number = -1
    with (
        VideoWriter(output / "overlay.mp4", frames.size, rate) as writer,
        Progress(*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn()) as progress,
    ):
        task = progress.add_task("segment", total=len(names) or None)
        for number, prediction in enumerate(track(network, remembering, prompts, size=size, flip=flip, scales=scales)):
            name = names[number] if names else f"{number:05d}"
            write_mask(output / "masks" / f"{name}.png", prediction.labels.cpu().numpy(), palette)
            writer.write(painted(remembering.latest, prediction, palette))
            progress.advance(task)
    Console().print(
        f"{number + 1} masks are in {output / 'masks'}; to look at: {output / 'overlay.mp4'}",
        highlight=False,
        soft_wrap=True,
    )


def main(args: list[str]) -> None:
    """Run `lightning_vos segment` with the words that follow it.

    Raises:
        UserError: The words ask for something that cannot be done.
    """
    parser = argparse.ArgumentParser(
        "lightning_vos segment", description="Segment the objects of a mask through a whole video.", allow_abbrev=False
    )
    add_input_options(parser)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="gets masks/ and overlay.mp4")
    parser.add_argument("--flip", action="store_true", help="average with the flipped video: twice the time and memory")
    parser.add_argument(
        "--scales", type=float, nargs="+", default=(1.0,), metavar="S", help="average over scales of the working size"
    )
    segment(**vars(parser.parse_args(args)))
