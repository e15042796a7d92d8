"""From class maps to a label map, the pseudo-mask that a segmentation network can be trained on.

Shapes: K classes, k of them that an image is taken to show, h w of class maps, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal, NamedTuple, get_args

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lightning_vos.evaluation.semantic import ClassSet
from lightning_vos.models.token_masking.filling import fill_majority, fill_nearest
from lightning_vos.models.token_masking.refinement import pixel_adaptive_refinement, refined_by_crf

Background = Literal["unassigned", "threshold", "token", "none"]
Merge = Literal["probability", "argmax"]
Fill = Literal["nearest", "majority", "none"]
LabelSource = Literal["predicted", "image"]
ZeroMaps = Literal["skipped", "everywhere"]
Refinement = Literal["none", "par", "crf"]

_CHOICES = {
    "background": get_args(Background),
    "merge": get_args(Merge),
    "fill": get_args(Fill),
    "labels": get_args(LabelSource),
    "zero_maps": get_args(ZeroMaps),
    "refinement": get_args(Refinement),
}


@dataclass(frozen=True)
class PseudoMaskSettings:
    """How class maps become a label map.

    Differs from the paper, which does not say it: where background comes from. Its tables count background as a class,
    but its method, and the published code, give every pixel to one of the other classes, which is "none" here.

    Attributes:
        threshold: What a pixel of a class map must reach so that the class claims it: the "mean" of the map (published
            code; the paper does not say what it binarises by), "otsu", or a number from 0 to 1, the map's lowest and
            highest value.
        background: What is background. "unassigned": what no class claims, but for small holes, which are filled.
            "threshold": where no class is above the number `threshold`; the class with the highest value, of maps
            brought to 0 to 1, has the others. "token": the same with the map of the first class token, which all
            images have, in place of a number. "none": nothing, for datasets without background; all is filled.
        merge: Which class has a pixel that several claim: the one of the highest "probability" in the image, or the
            "argmax" of the maps brought to 0 to 1. "threshold" and "token" take the latter always.
        fill: Which label is filled in: the most common one around, from the rim of the hole on ("majority", paper), or
            the "nearest" (published); "none" leaves holes.
        largest_hole: Where background is "unassigned": the share of the image that a hole has at most to be filled.
        labels: Which classes an image is taken to show: those "predicted", with a probability above 0.5, or those of
            its "image"-level truth, which the published code takes on ADE20K.
        top1: Whether an image without a predicted class shows the most probable one.
        zero_maps: Whether classes whose map is 0 all over are left out, or claim the whole image, 0 being the mean of
            their map, as the published code has it on DFC2020.
        refill_first: Whether the pixels of the first class are filled again with others, so that it never has any, as
            the published code has it on ADE20K, where it is "other". With background "none" alone.
        refinement: What fits the result to the edges of the image: "par" works on the class maps and needs nothing
            else, "crf" on the label map, and needs a package.

    Raises:
        ValueError: One of them is not what is said here, or they do not go together.
    """

    threshold: Literal["mean", "otsu"] | float = "mean"
    background: Background = "unassigned"
    merge: Merge = "probability"
    fill: Fill = "majority"
    largest_hole: float = 0.002
    labels: LabelSource = "predicted"
    top1: bool = False
    zero_maps: ZeroMaps = "skipped"
    refill_first: bool = False
    refinement: Refinement = "none"

    def __post_init__(self) -> None:
        """Refuse what makes no label map."""
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(choices)}")
        if self.threshold not in ("mean", "otsu") and (isinstance(self.threshold, str) or not 0 <= self.threshold < 1):
            raise ValueError(f"threshold is {self.threshold!r}, expected mean, otsu or a number from 0 to below 1")
        if self.background == "threshold" and isinstance(self.threshold, str):
            raise ValueError(f"background is threshold, so threshold must be a number, not {self.threshold!r}")
        if not 0 <= self.largest_hole <= 1:
            raise ValueError(f"largest_hole is {self.largest_hole}, expected a share of the image from 0 to 1")
        if self.refill_first and self.background != "none":
            raise ValueError(f"refill_first goes with background none, not {self.background}")

    def describe(self) -> str:
        """Name the settings in a line that is printed beside scores."""
        source = "predicted (p > 0.5)" if self.labels == "predicted" else "image-level truth"
        changed = [
            f"{field.name} {getattr(self, field.name)}"
            for field in fields(self)
            if field.name in ("largest_hole", "top1", "zero_maps", "refill_first", "refinement")
            and getattr(self, field.name) != field.default
        ]
        parts = [f"labels {source}", *(f"{name} {getattr(self, name)}" for name in ("threshold", "background"))]
        if self.background in ("unassigned", "none"):
            parts += [f"merge {self.merge}", f"fill {self.fill}"]
        return ", ".join([*parts, *changed])


_SETTINGS = PseudoMaskSettings()
_ROUNDING = 1e-6  # by which the mean of equal values may be above them, of 1


class PixelValues(NamedTuple):
    """What label maps call the classes."""

    classes: tuple[int, ...]  # of each of the K classes
    background: int  # of pixels that show none of them
    ignored: int  # of pixels that nothing is said of


def pixel_values(class_set: ClassSet, classes: Sequence[str]) -> PixelValues:
    """Find what label maps of a dataset call the classes of a network.

    Args:
        class_set: What the values of the dataset's label maps stand for; "background" is the name of the background.
        classes: The K classes: the last names of the class set, or any names, of which those that it lacks are
            background.
    """
    values = list(range(class_set.values.start, class_set.values.stop))
    has_background = class_set.names[0] == "background"
    background = values[0] if has_background else class_set.ignored
    if class_set.names[-len(classes) :] == tuple(classes):
        of_classes = values[-len(classes) :]
    else:
        known = dict(zip(class_set.names, values, strict=True))
        of_classes = [known.get(name, background) for name in classes]
    return PixelValues(tuple(of_classes), background, class_set.ignored)


def label_map(
    maps: Tensor,
    probabilities: Tensor,
    size: tuple[int, int],
    values: PixelValues,
    settings: PseudoMaskSettings = _SETTINGS,
    *,
    labels: Tensor | None = None,
    image: Tensor | None = None,
) -> NDArray[np.uint8]:
    """Make the label map of an image.

    Args:
        maps: (K, h, w) class maps, 0 or more, laid over the whole image. With background "token" the first is the
            background's, here and in all that follows.
        probabilities: (K,) of the classes.
        size: (H, W) of the image in pixels.
        values: What the label map calls the classes.
        settings: How it is made.
        labels: (K,) in {0, 1}, the image-level truth, which `settings.labels` "image" needs.
        image: (C, h', w') the image in any size and normalisation, which `settings.refinement` needs.

    Returns:
        (H, W) label map. Where background is "none", pixels that no class gets are ignored.

    Raises:
        ValueError: The truth or the image is needed and not given.
        ConfigError: The package that refines is not there, or cannot refine an image of such bands.
    """
    used, planes = _used_maps(maps, probabilities, settings, labels, image)
    merged = _merged(used, _stretched(planes, size), _background(maps, size, settings), settings).cpu().numpy()
    merged = _filled(merged, settings)
    of_background = values.classes[0] if settings.background == "token" else values.background
    if settings.refinement == "crf":
        merged = _fitted(merged, _given(image, settings), settings)
    unclaimed = values.ignored if settings.background == "none" else of_background
    return np.array([*values.classes, unclaimed], dtype=np.uint8)[merged]  # -1 is the last


def class_maps_to_keep(
    maps: Tensor,
    probabilities: Tensor,
    values: PixelValues,
    settings: PseudoMaskSettings = _SETTINGS,
    *,
    labels: Tensor | None = None,
    image: Tensor | None = None,
) -> tuple[tuple[int, ...], NDArray[np.float32]]:
    """Find what `write_class_maps` keeps of an image, for scores with other thresholds.

    Args:
        maps: As in `label_map`, as all others.
        probabilities: (K,) of the classes.
        values: What label maps call the classes.
        settings: Which classes the image is taken to show, and whether maps are refined.
        labels: (K,) the image-level truth.
        image: (C, h', w') the image.

    Returns:
        The values of the k classes that the image is taken to show; (k, h, w) maps in [0, 1].

    Raises:
        ValueError: The truth or the image is needed and not given.
    """
    used, planes = _used_maps(maps, probabilities, settings, labels, image)
    return tuple(values.classes[number] for number in used.tolist()), planes.cpu().numpy()


def normalised(maps: Tensor) -> Tensor:
    """Bring each of (K, h, w) maps to 0 to 1, its lowest and highest value; a map of one value to 1, of zeros to 0."""
    lowest, highest = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    flat = highest == lowest
    return torch.where(flat, (highest > 0).to(maps.dtype), (maps - lowest) / (highest - lowest).masked_fill(flat, 1))


def _used_maps(
    maps: Tensor, probabilities: Tensor, settings: PseudoMaskSettings, labels: Tensor | None, image: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The (k,) classes that the image shows, the least probable first, and their (k, h, w) maps in [0, 1]."""
    if settings.labels == "predicted":
        used = probabilities > 0.5
    elif labels is not None:
        used = labels.to(maps.device) > 0
    else:
        raise ValueError("labels of the image are to be used, but the image has none: set labels to predicted")
    first = 1 if settings.background == "token" else 0
    used[:first] = False
    if settings.labels == "predicted" and settings.top1 and not used.any():
        used[first + probabilities[first:].argmax()] = True
    if settings.zero_maps == "skipped":
        used &= (maps != 0).any(dim=2).any(dim=1)
    order = probabilities.argsort(stable=True)
    order = order[used[order]]
    planes = normalised(maps[order])
    if settings.refinement == "par":
        pixels = _given(image, settings)
        planes = pixel_adaptive_refinement(_stretched(planes, (pixels.shape[1], pixels.shape[2])), pixels).clamp(0, 1)
    return order, planes


def _given(image: Tensor | None, settings: PseudoMaskSettings) -> Tensor:
    if image is None:
        raise ValueError(f"refinement {settings.refinement} needs the image")
    return image


def _stretched(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(K, *size) maps; pixels and patches have their values in their middle."""
    if not len(maps):
        return maps.new_empty(0, *size)
    return F.interpolate(maps[None], size, mode="bilinear", align_corners=False)[0]


def _background(maps: Tensor, size: tuple[int, int], settings: PseudoMaskSettings) -> Tensor | float | None:
    """What a class must be above not to be background, if that is how background is found."""
    if settings.background == "token":
        return _stretched(normalised(maps[:1]), size)[0]
    if settings.background == "threshold" and not isinstance(settings.threshold, str):
        return settings.threshold
    return None


def _merged(used: Tensor, planes: Tensor, background: Tensor | float | None, settings: PseudoMaskSettings) -> Tensor:
    """(H, W) the class of each pixel, -1 where there is none."""
    if not len(used):
        return used.new_full(planes.shape[1:], -1)
    if background is not None:
        claims = planes > background
    elif settings.threshold == "mean":
        claims = planes >= planes.mean(dim=(1, 2), keepdim=True) - _ROUNDING
    elif settings.threshold == "otsu":
        claims = _claims_by_otsu(planes)
    else:
        claims = planes >= settings.threshold
    if background is not None or settings.merge == "argmax":
        rank = planes.masked_fill(~claims, -1).argmax(dim=0)
    else:
        later = torch.arange(len(used), device=used.device)[:, None, None]
        rank = later.where(claims, -1).amax(dim=0).clamp(min=0)
    return used[rank].where(claims.any(dim=0), -1)


def _claims_by_otsu(planes: Tensor) -> Tensor:
    """(k, H, W) bool, what is above the threshold that parts the values of a map best."""
    grey = (255 * planes).round().byte().cpu().numpy()
    binary = [cv2.threshold(plane, 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)[1] for plane in grey]
    claims = np.stack(binary).astype(bool)
    claims |= grey.min(axis=(1, 2), keepdims=True) == grey.max(axis=(1, 2), keepdims=True)  # nothing to part
    return torch.from_numpy(claims).to(planes.device)


def _filled(labels: NDArray[np.int64], settings: PseudoMaskSettings) -> NDArray[np.int64]:
    """The label map with its holes filled."""
    if settings.fill == "none" or settings.background not in ("unassigned", "none"):
        return labels
    fill = fill_nearest if settings.fill == "nearest" else fill_majority
    holes = labels < 0
    if settings.background == "unassigned":
        holes = _small(holes, settings.largest_hole * labels.size)
    labels = fill(labels, holes)
    if settings.refill_first:
        others = np.where(labels == 0, -1, labels)
        again = fill(others, others < 0)
        labels = np.where(again < 0, labels, again)
    return labels


def _small(holes: NDArray[np.bool_], largest: float) -> NDArray[np.bool_]:
    """Holes of at most so many pixels, which touch each other at their sides."""
    _, numbers, measures, _ = cv2.connectedComponentsWithStats(holes.astype(np.uint8), connectivity=4)
    small: NDArray[np.bool_] = measures[:, cv2.CC_STAT_AREA] <= largest
    return holes & small[numbers]


def _fitted(labels: NDArray[np.int64], image: Tensor, settings: PseudoMaskSettings) -> NDArray[np.int64]:
    """The label map, fitted to the image by a CRF; pixels of no class are background, or unknown if there is none."""
    shown = np.unique(labels)
    if settings.background == "none":
        shown = shown[shown >= 0]
    if len(shown) < 2:
        return labels
    numbers = np.where(np.isin(labels, shown), np.searchsorted(shown, labels), len(shown))
    return shown[refined_by_crf(numbers, len(shown), image)]
