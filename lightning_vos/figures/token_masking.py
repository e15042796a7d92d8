"""What token masking attends to: the maps of classes over images, and the gates of attention heads.

Shapes: K classes, k of them that are drawn, h w patches, H W pixels, L layers, M heads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure

from lightning_vos.callbacks.label_maps import painted_labels, picture
from lightning_vos.errors import ConfigError
from lightning_vos.models.token_masking.inference import MapSettings, class_maps
from lightning_vos.models.token_masking.pseudo_masks import normalised

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from lightning_vos.evaluation.semantic import ClassSet
    from lightning_vos.models.token_masking.network import TokenMaskingNetwork

_MOST_CLASSES = 6  # columns of an image
_PICTURE = 2.0  # width of a picture, in inches
_DARKENED = 0.6  # brightness of an image under a map


class ClassAttention(NamedTuple):
    """What one network makes of an image."""

    label: str  # of the network
    maps: NDArray[np.float32]  # (K, h, w), each in [0, 1]
    probabilities: NDArray[np.float32]  # (K,)


class AttendedImage(NamedTuple):
    """An image with what networks make of it: as many rows of `class_attention_figure`."""

    name: str
    picture: NDArray[np.uint8]  # (H, W, 3) RGB
    painted: NDArray[np.uint8]  # the same with its true mask over it, if there is one
    shown: NDArray[np.bool_]  # (K,) what it truly shows
    networks: list[ClassAttention]


class HeadGateMap(NamedTuple):
    """The gates of one network."""

    label: str
    gates: NDArray[np.float32]  # (L, M) in [0, 1], of an evaluation


def attended(
    networks: Sequence[tuple[str, TokenMaskingNetwork]],
    name: str,
    pixels: Tensor,
    size: tuple[int, int],
    labels: NDArray[np.bool_],
    mask: NDArray[np.uint8] | None,
    class_set: ClassSet,
    settings: MapSettings,
) -> AttendedImage:
    """Look at an image with several networks.

    Args:
        networks: What each is called, and the network, in evaluation mode.
        name: Of the image.
        pixels: (C, h, w) as the networks see it.
        size: (H, W) of the image on disk.
        labels: (K,) what it truly shows.
        mask: (H, W) its true label map, if there is one.
        class_set: What the values of the mask stand for.
        settings: Which attention is looked at.
    """
    found = []
    for label, network in networks:
        device = network.classifier.weight.device
        maps, probabilities = class_maps(network, pixels.to(device), settings)
        found.append(ClassAttention(label, normalised(maps).cpu().numpy(), probabilities.cpu().numpy()))
    plain = picture(pixels, size)
    painted = plain if mask is None else painted_labels(pixels, mask, class_set)
    return AttendedImage(name, plain, painted, labels, found)


def class_attention_figure(images: Sequence[AttendedImage], classes: Sequence[str]) -> Figure:
    """For each image a row a network: the image with its true mask, and the maps of the classes over it.

    Drawn are the classes that an image shows, and those of the others that a network says, six at most; each map has a
    scale of its own.

    Args:
        images: At least one.
        classes: Their K names.
    """
    drawn = [_drawn(image) for image in images]
    rows, columns = sum(len(image.networks) for image in images), 1 + max(len(chosen) for chosen in drawn)
    height, width = images[0].picture.shape[:2]
    row = _PICTURE * height / width + 0.35
    figure = Figure(figsize=(_PICTURE * columns + 0.4, row * rows), layout="constrained")
    axes = iter(figure.subplots(rows, columns, squeeze=False))
    for image, chosen in zip(images, drawn, strict=True):
        for network in image.networks:
            of_row = next(axes)
            of_row[0].imshow(image.painted)
            of_row[0].set_title(image.name, fontsize="small")
            of_row[0].set_ylabel(network.label)
            extent = (0.0, float(image.picture.shape[1]), float(image.picture.shape[0]), 0.0)
            for axis, number in zip(of_row[1:], chosen, strict=False):
                values = network.maps[number]
                axis.imshow(image.picture.mean(axis=2), cmap="gray", vmin=0, vmax=255 / _DARKENED)
                axis.imshow(values, cmap="inferno", vmin=0, vmax=1, alpha=values, extent=extent)
                absent = "" if image.shown[number] else ", absent"
                axis.set_title(f"{classes[number]} {network.probabilities[number]:.2f}{absent}", fontsize="small")
            for axis in of_row:
                axis.set(xticks=[], yticks=[])
                axis.set_visible(bool(axis.images))
    return figure


def _drawn(image: AttendedImage) -> list[int]:
    """The classes that are drawn: first those that the image shows."""
    said = np.any([network.probabilities > 0.5 for network in image.networks], axis=0)
    chosen = [*np.flatnonzero(image.shown), *np.flatnonzero(said & ~image.shown)]
    return [int(number) for number in chosen[:_MOST_CLASSES]]


@torch.no_grad()
def gate_map(label: str, network: TokenMaskingNetwork) -> HeadGateMap:
    """The gates of a network.

    Args:
        label: What the network is called.
        network: The network.

    Raises:
        ConfigError: if it has none.
    """
    if network.gates is None:
        raise ConfigError(
            f"The network {label} has no gates to draw: it was trained without, or its closed heads were removed.\n"
            "Name weights with gates, before `lightning_vos convert --prune`."
        )
    return HeadGateMap(label, network.gates.values().cpu().numpy())


def gate_figure(panels: Sequence[HeadGateMap]) -> Figure:
    """Layers down, heads across, side by side; a cross marks a closed head."""
    layers, heads = (max(panel.gates.shape[axis] for panel in panels) for axis in (0, 1))
    figure = Figure(figsize=((0.3 * heads + 1.2) * len(panels) + 0.8, 0.3 * layers + 1.2), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (label, gates) in zip(axes, panels, strict=True):
        drawn = axis.imshow(gates, cmap="viridis", vmin=0, vmax=1)
        closed = np.argwhere(gates <= 0)
        axis.plot(closed[:, 1], closed[:, 0], "x", color="white", markersize=5)
        axis.set_title(f"{label}: {int((gates > 0).sum())} of {gates.size} heads open", fontsize="medium")
        axis.set(xlabel="head", ylabel="layer", yticks=range(len(gates)), xticks=range(gates.shape[1]))
        axis.set_yticklabels([str(1 + layer) for layer in range(len(gates))])
        axis.set_xticklabels([str(1 + head) for head in range(gates.shape[1])])
    figure.colorbar(drawn, ax=list(axes), label="gate")
    return figure
