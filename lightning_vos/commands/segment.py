"""`lightning_vos segment`: masks and an overlay of a person's own video, from the mask of its first frame."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_vos.errors import ConfigError, FrameError, MaskError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch


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
) -> None:
    """Segment the objects of a mask through a whole video; writes masks/<frame>.png and overlay.mp4 under `output`.

    Args:
        video: A folder of frames or a video file.
        mask: An indexed PNG, for the frame of its name in a folder of frames, else for the first; or a folder of masks
            named like frames, each of which adds objects.
        output: The folder to write.
        weights: A checkpoint of a run, or a published file.
        resize_masks: Resize masks of another size than the video (nearest) instead of refusing them.
        size: (h, w) that the network works at, instead of the method's own choice.
        device: Where to run, such as cpu, cuda or mps; the best there is where None.

    Raises:
        UserError: if an input is missing, unreadable or does not fit the others.
    """
    if weights is None:
        raise ConfigError(
            "segment needs weights: the package ships none yet, and random ones give random masks.\n"
            "Name a checkpoint of a run (`lightning_vos fit` leaves them in runs/*/version_*/checkpoints) or a "
            "published file: --weights FILE."
        )
    if size is not None and min(size) < 1:
        raise ConfigError(
            f"--size {size[0]} {size[1]} is no size: expected height and width in pixels, such as 480 864."
        )
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

    from lightning_vos.callbacks.results import painted
    from lightning_vos.io.frames import FrameFolder, list_frames
    from lightning_vos.io.masks import VOC_PALETTE, read_mask, read_palette, write_mask
    from lightning_vos.io.video import VideoFile, VideoWriter
    from lightning_vos.published import load_network
    from lightning_vos.vos.track import Remembering, track

    if not video.exists():
        raise FrameError(f"There is no video {video.absolute()}. Name a folder of frames or a video file.")
    if (output / "masks").is_dir() and any((output / "masks").iterdir()):
        raise ConfigError(f"{output / 'masks'} holds masks already. Name another --output, or remove them.")
    frames = FrameFolder(list_frames(video)) if video.is_dir() else VideoFile(video)
    names = [path.stem for path in frames.paths] if isinstance(frames, FrameFolder) else []
    rate = frames.frames_per_second if isinstance(frames, VideoFile) else _FRAMES_PER_SECOND
    masks = _masks(mask, names)
    prompts = {number: read_mask(path, frames.size, resize=resize_masks) for number, path in masks.items()}
    palette = read_palette(next(iter(masks.values()))) or VOC_PALETTE
    network = load_network(weights).to(_device(device))
    remembering = Remembering(frames)
    number = -1
    with (
        VideoWriter(output / "overlay.mp4", frames.size, rate) as writer,
        Progress(*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn()) as progress,
    ):
        task = progress.add_task("segment", total=len(names) or None)
        for number, prediction in enumerate(track(network, remembering, prompts, size=size)):
            name = names[number] if names else f"{number:05d}"
            write_mask(output / "masks" / f"{name}.png", prediction.labels.cpu().numpy(), palette)
            writer.write(painted(remembering.latest, prediction, palette))
            progress.advance(task)
    Console().print(
        f"{number + 1} masks are in {output / 'masks'}; to look at: {output / 'overlay.mp4'}",
        highlight=False,
        soft_wrap=True,
    )


def _masks(mask: Path, names: Sequence[str]) -> dict[int, Path]:
    """Frame number -> the mask that adds objects there; `names` are those of the frames, none for a video file."""
    if not mask.is_dir():
        return {names.index(mask.stem) if mask.stem in names else 0: mask}
    files = sorted(path for path in mask.iterdir() if path.suffix.lower() == ".png" and path.name[0] != ".")
    numbers = {name: number for number, name in enumerate(names)}
    unknown = [path.name for path in files if path.stem not in numbers and not (path.stem.isdigit() and not names)]
    if not files or unknown:
        found = f", of which {unknown[0]} has no frame of its name" if unknown else ""
        raise MaskError(
            f"{mask} holds {len(files)} masks{found}.\n"
            "Expected indexed PNGs named like frames of the video (for a video file: their numbers, from 0)."
        )
    return {numbers[path.stem] if names else int(path.stem): path for path in files}


def _device(name: str | None) -> torch.device:
    import torch

    if name is not None:
        try:
            return torch.zeros(0, device=name).device
        except (RuntimeError, AssertionError) as error:
            raise ConfigError(f"--device {name} cannot be used here: {str(error).splitlines()[0]}") from error
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def main(args: list[str]) -> None:
    """Run `lightning_vos segment` with the words that follow it.

    Raises:
        UserError: The words ask for something that cannot be done.
    """
    parser = argparse.ArgumentParser(
        "lightning_vos segment", description="Segment the objects of a mask through a whole video.", allow_abbrev=False
    )
    parser.add_argument("video", type=Path, metavar="VIDEO", help="a folder of frames or a video file")
    parser.add_argument(
        "mask",
        type=Path,
        metavar="MASK",
        help="an indexed PNG (pixel value = object), or a folder of them named like frames",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="gets masks/ and overlay.mp4")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="a checkpoint of a run, or a published file")
    parser.add_argument("--resize-masks", action="store_true", help="resize masks of another size than the video")
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("H", "W"), help="size in pixels that the network works at"
    )
    parser.add_argument("--device", help="cpu, cuda or mps; the best there is by default")
    segment(**vars(parser.parse_args(args)))
