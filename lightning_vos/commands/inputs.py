"""What several verbs are given alike: a video with masks, weights, a size, a device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lightning_vos.errors import ConfigError, FrameError, MaskError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    import numpy as np
    import torch
    from numpy.typing import NDArray

    from lightning_vos.io.frames import FrameFolder
    from lightning_vos.io.video import VideoFile


_MOST_GREYS = 20  # values of a grey mask that are taken for ids


class Inputs(NamedTuple):
    """A person's own video, and the masks of its objects."""

    frames: FrameFolder | VideoFile
    names: list[str]  # of the frames; none for a video file
    prompts: dict[int, NDArray[np.uint8]]  # frame number -> (H, W) label map
    palette: bytes


def add_input_options(
    parser: argparse.ArgumentParser,
    *,
    needs_mask: bool = True,
    weights: str = "a checkpoint of a run, or a published file",
) -> None:
    """Add VIDEO, MASK, --weights with such a help, --resize-masks, --size and --device."""
    parser.add_argument("video", type=Path, metavar="VIDEO", help="a folder of frames or a video file")
    parser.add_argument(
        "mask",
        type=Path,
        metavar="MASK",
        nargs=None if needs_mask else "?",
        help="an indexed PNG (pixel value = object), or a folder of them named like frames",
    )
    parser.add_argument("--weights", type=Path, metavar="FILE", help=weights)
    parser.add_argument("--resize-masks", action="store_true", help="resize masks of another size than the video")
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("H", "W"), help="size in pixels that the network works at"
    )
    add_device_option(parser)


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """Add --device, which `choose_device` reads."""
    parser.add_argument("--device", help="cpu, cuda or mps; the best there is by default")


def check_weights(verb: str, weights: Path | None, methods: str) -> Path:
    """The weights of a verb that those of the package are not for, before anything slow is done.

    Raises:
        ConfigError: if there are none.
    """
    if weights is None:
        raise ConfigError(
            f"{verb} needs weights of {methods}; those of the package are of XMem.\n"
            "Name a checkpoint of a run (`lightning_vos fit` leaves them in runs/*/version_*/checkpoints) or a "
            "published file: --weights FILE."
        )
    return weights


def check_size(size: tuple[int, int] | None) -> None:
    """The size that a network is to work at, before anything slow is done.

    Raises:
        ConfigError: if it is nothing.
    """
    if size is not None and min(size) < 1:
        raise ConfigError(
            f"--size {size[0]} {size[1]} is no size: expected height and width in pixels, such as 480 864."
        )


def read_inputs(video: Path, mask: Path, *, resize_masks: bool = False) -> Inputs:
    """Open a video and read its masks.

    Args:
        video: A folder of frames or a video file.
        mask: An indexed PNG, for the frame of its name in a folder of frames, else for the first; or a folder of masks
            named like frames, each of which adds objects, or states anew those that it shows.
        resize_masks: Resize masks of another size than the video (nearest) instead of refusing them.

    Raises:
        UserError: if one is missing, unreadable or does not fit the other.
    """
    import numpy as np

    from lightning_vos.io.frames import FrameFolder
    from lightning_vos.io.masks import VOC_PALETTE, read_mask, read_palette

    frames = read_video(video)
    names = [path.stem for path in frames.paths] if isinstance(frames, FrameFolder) else []
    masks = _masks(mask, names)
    pictures = {path.resolve() for path in frames.paths} if isinstance(frames, FrameFolder) else set()
    for path in masks.values():
        if path.resolve() in pictures:
            raise MaskError(f"{path} lies among the frames, and would be one of them. Move it to another folder.")
    prompts = {number: read_mask(path, frames.size, resize=resize_masks) for number, path in masks.items()}
    for number, path in masks.items():
        values = len(np.unique(prompts[number]))
        if values > _MOST_GREYS and read_palette(path) is None:
            raise MaskError(
                f"{path} has {values} values of grey, each of which would be an object: are its edges soft?\n"
                "`lightning_vos data prepare index-masks MASK DIR --threshold 128` makes them hard. If they are ids,\n"
                "save them with a palette: lightning_vos.io.masks.write_mask(path, labels)."
            )
    return Inputs(frames, names, prompts, read_palette(next(iter(masks.values()))) or VOC_PALETTE)


def read_video(video: Path) -> FrameFolder | VideoFile:
    """Open a video: a folder of frames or a video file.

    Raises:
        FrameError: if it is missing or unreadable.
    """
    from lightning_vos.io.frames import FrameFolder, ordered_frames
    from lightning_vos.io.video import VideoFile

    if not video.exists():
        raise FrameError(f"There is no video {video.absolute()}. Name a folder of frames or a video file.")
    return FrameFolder(ordered_frames(video)) if video.is_dir() else VideoFile(video)


def choose_device(name: str | None) -> torch.device:
    """The device of that name, or the best there is.

    Raises:
        ConfigError: if it cannot be used here, or computes nothing, as `meta`.
    """
    import torch

    if name is not None:
        try:
            number = torch.ones(1, device=name)
            number.item()  # what of the device cannot be read back is not computed
            return number.device
        except (RuntimeError, AssertionError, ImportError) as error:
            raise ConfigError(
                f"--device {name} cannot be used here: {str(error).splitlines()[0]}\n"
                "  expected cpu, or cuda or mps where the machine has it"
            ) from error
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


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
    placed = {numbers[path.stem] if names else int(path.stem): path for path in files}
    if len(placed) < len(files):
        raise MaskError(f"{mask} holds two masks for one frame: {len(files)} for {len(placed)} frames. Remove one.")
    return placed
