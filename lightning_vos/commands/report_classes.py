"""`lightning_vos report class-attention` and `report gates`: pictures of token masking."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_vos.commands.inputs import add_device_option, choose_device
from lightning_vos.errors import ConfigError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence


def class_attention(
    recipe: Sequence[str],
    weights: Sequence[tuple[str, Path]],
    output: Path,
    *,
    images: Sequence[str] = (),
    count: int = 4,
    layers: int = 1,
    device: str | None = None,
) -> None:
    """Draw where the tokens of classes look in images, of several networks one below the other.

    Args:
        recipe: Whose validation images they are: `--config NAME`, `--data.root DIR` and so on.
        weights: What a network is called, and a checkpoint of a run, or a published file.
        output: The picture to write.
        images: Their names; the first `count` that show two classes or more where there are none.
        count: See `images`.
        layers: Maps of the last so many are added up.
        device: Where to run, such as cpu, cuda or mps; the best there is where None.

    Raises:
        UserError: The recipe, its data or weights cannot be used, or do not belong together.
    """
    from lightning_vos.io.plots import check_figure_path, write_figure

    check_figure_path(output)
    if count < 1:
        raise ConfigError(f"--count {count} draws nothing: expected a number of at least 1.")
    import torch
    from rich.console import Console

    from lightning_vos.commands.recipe_data import DataCLI
    from lightning_vos.figures.token_masking import attended, class_attention_figure
    from lightning_vos.models.token_masking.inference import MapSettings
    from lightning_vos.published import load_token_masking_network

    data: Any = DataCLI(recipe).data
    if not hasattr(data, "class_set"):
        raise ConfigError(
            f"{type(data).__name__} has no images with labels.\n"
            "Name a recipe of token masking, such as configs/token_masking_voc.yaml."
        )
    on = choose_device(device)
    networks = [(name, load_token_masking_network(path).to(on)) for name, path in weights]
    classes = tuple(data.class_names)
    for name, network in networks:
        if network.classes == len(classes) + 1:
            classes = ("background", *classes)
        if network.classes != len(classes):
            raise ConfigError(
                f"The network {name} knows {network.classes} classes, the data has {len(data.class_names)}.\n"
                "Name the recipe that it was trained with."
            )
    found = data.images("val")
    shift = len(classes) - len(data.class_names)
    drawn = []
    for number in _chosen(found, images, count):
        pixels = found.read(number)
        shown = torch.nn.functional.pad(torch.from_numpy(found.labels(number)), (shift, 0), value=1).bool().numpy()
        prepared = torch.from_numpy(data.preparation.whole(pixels))
        mask = found.mask(number)
        size = (pixels.shape[0], pixels.shape[1])
        name, settings = found.names[number], MapSettings(layers=layers)
        drawn.append(attended(networks, name, prepared, size, shown, mask, data.class_set, settings))
    write_figure(output, class_attention_figure(drawn, classes))
    Console().print(f"The figure is {output}", highlight=False, soft_wrap=True)


def _chosen(found: Any, names: Sequence[str], count: int) -> list[int]:
    """The numbers of the images that are drawn."""
    if unknown := [name for name in names if name not in found.names]:
        raise ConfigError(
            f"--image {unknown[0]} is none of the {len(found.names)} validation images, such as {found.names[0]}."
        )
    if names:
        return [list(found.names).index(name) for name in names]
    if found.table is None and not found.has_masks:
        raise ConfigError("The validation images have no labels, so none is chosen.\nName some: --image NAME.")
    several = (number for number in range(len(found.names)) if found.labels(number).sum() > 1)
    chosen = [number for number, _ in zip(several, range(count), strict=False)]
    return chosen or list(range(min(count, len(found.names))))


def gates(weights: Sequence[tuple[str, Path]], output: Path) -> None:
    """Draw the gates of attention heads, layers down and heads across, of several networks side by side.

    Args:
        weights: As `class_attention`.
        output: The picture to write.

    Raises:
        UserError: Weights cannot be used, or have no gates.
    """
    from lightning_vos.io.plots import check_figure_path, write_figure

    check_figure_path(output)
    from rich.console import Console

    from lightning_vos.figures.token_masking import gate_figure, gate_map
    from lightning_vos.published import load_token_masking_network

    panels = [gate_map(name, load_token_masking_network(path)) for name, path in weights]
    write_figure(output, gate_figure(panels))
    Console().print(f"The figure is {output}", highlight=False, soft_wrap=True)


def add_parsers(kinds: Any) -> tuple[argparse.ArgumentParser, argparse.ArgumentParser]:
    """Add both verbs to those of `report`, without the output, which all have."""
    attention = kinds.add_parser("class-attention", help="where tokens of classes look in images", allow_abbrev=False)
    attention.add_argument(
        "--config", action="append", default=[], metavar="NAME", help="the recipe; more words as fit"
    )
    attention.add_argument(
        "--image", action="append", default=[], dest="images", metavar="NAME", help="of which images"
    )
    attention.add_argument("--count", type=int, default=4, help="or how many that show several classes (4)")
    attention.add_argument("--layers", type=int, default=1, help="maps of the last so many are added up (1)")
    add_device_option(attention)
    gate = kinds.add_parser("gates", help="which attention heads of token masking are open", allow_abbrev=False)
    for kind in (attention, gate):
        kind.add_argument(
            "--weights",
            action="append",
            default=[],
            metavar="NAME=FILE",
            help="a checkpoint of a run, or a published file, and what the figure calls it; several times to compare",
        )
    return attention, gate
