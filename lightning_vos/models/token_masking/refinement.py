"""Fitting class maps and label maps to the edges of their image.

Shapes: K maps, C bands, H W pixels, R neighbours of a pixel.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lightning_vos.errors import ConfigError

_AROUND = [step for step in itertools.product((-1, 0, 1), repeat=2) if step != (0, 0)]
_NARROW = 0.3  # of standard deviations: differences from there on count for little
_DISTANCE_WEIGHT = 0.01
_CERTAINTY = 0.7  # that a CRF starts with in the label of a pixel


def pixel_adaptive_refinement(
    maps: Tensor, image: Tensor, *, iterations: int = 10, dilations: Sequence[int] = (1, 2, 4, 8, 12, 24)
) -> Tensor:
    """Let each pixel of maps be the mean of its neighbours, again and again, those of its own colour above all.

    Neighbours lie in 8 directions at several distances. How much one counts is the softmax of its difference in colour,
    and a little of its distance (pixel-adaptive refinement of "Learning Affinity from Attention"). Both are
    measured in standard deviations over the neighbours, so that neither the scale of a band matters nor its offset.

    Args:
        maps: (K, H, W).
        image: (C, H, W), any bands, in any normalisation.
        iterations: How often.
        dilations: Distances of neighbours in pixels.

    Returns:
        (K, H, W), within the range of the maps.
    """
    if not len(maps):
        return maps
    steps = [(dy * far, dx * far) for far in dilations for dy, dx in _AROUND]
    margin = max(dilations)
    padded = _padded(image, margin)
    colours = [_moved(padded, step, margin) for step in steps]  # R views of (C, H, W): a copy of all could be gigabytes
    mean = sum(colours, torch.zeros_like(image)) / len(steps)
    variance = sum(((colour - mean) ** 2 for colour in colours), torch.zeros_like(image)) / (len(steps) - 1)
    spread = _NARROW * variance.sqrt() + 1e-8
    alike = torch.stack([-(((colour - image) / spread) ** 2).mean(dim=0) for colour in colours])
    weights = alike.softmax(dim=0)  # (R, H, W)
    far = torch.tensor([math.hypot(*step) for step in steps], device=maps.device)
    closeness = (-((far / (_NARROW * far.std())) ** 2)).softmax(dim=0)
    weights = (weights + _DISTANCE_WEIGHT * closeness[:, None, None]) / (1 + _DISTANCE_WEIGHT)
    for _ in range(iterations):
        padded = _padded(maps, margin)
        maps = torch.zeros_like(maps)
        for weight, step in zip(weights, steps, strict=True):
            maps.addcmul_(_moved(padded, step, margin), weight)
    return maps


def _padded(planes: Tensor, margin: int) -> Tensor:
    """Continued beyond the image by the pixels of its edge."""
    return F.pad(planes[None], (margin,) * 4, mode="replicate")[0]


def _moved(padded: Tensor, step: tuple[int, int], margin: int) -> Tensor:
    """The neighbours of all pixels that lie one step away, as a view."""
    dy, dx = step
    height, width = padded.shape[-2] - 2 * margin, padded.shape[-1] - 2 * margin
    return padded[..., margin + dy : margin + dy + height, margin + dx : margin + dx + width]


def dense_crf(
    probabilities: NDArray[np.floating],
    image: NDArray[np.uint8],
    *,
    iterations: int = 10,
    smoothness: tuple[float, float] = (1, 3),
    appearance: tuple[float, float, float] = (121, 5, 4),
) -> NDArray[np.float32]:
    """Fit the probabilities of labels to an image by a fully connected CRF.

    The defaults are those with which the field tests segmentation networks.

    Args:
        probabilities: (K, H, W) of the labels.
        image: (H, W, 3) RGB.
        iterations: Of mean-field inference.
        smoothness: Standard deviation in pixels, and weight, of labels being equal nearby.
        appearance: Standard deviation in pixels and in colours (of 0 to 255), and weight, of labels being equal where
            colours are alike.

    Returns:
        (K, H, W) probabilities.

    Raises:
        ConfigError: The package that does it is not there.
    """
    try:
        from pydensecrf.densecrf import DenseCRF2D
    except ImportError as error:
        raise ConfigError(
            "A fully connected CRF needs the package pydensecrf, which is not installed.\n"
            "  expected: pip install pydensecrf2 (it is compiled, which takes a C++ compiler and minutes)\n"
            'Or refine with "par" in its place, which needs nothing.'
        ) from error
    count, height, width = probabilities.shape
    field = DenseCRF2D(width, height, count)
    unary = -np.log(np.clip(probabilities, 1e-5, 1)).reshape(count, -1)
    field.setUnaryEnergy(np.ascontiguousarray(unary, dtype=np.float32))
    field.addPairwiseGaussian(sxy=smoothness[0], compat=smoothness[1])
    field.addPairwiseBilateral(
        sxy=appearance[0], srgb=appearance[1], rgbim=np.ascontiguousarray(image), compat=appearance[2]
    )
    return np.asarray(field.inference(iterations), dtype=np.float32).reshape(count, height, width)


def refined_by_crf(labels: NDArray[np.integer], count: int, image: Tensor) -> NDArray[np.int64]:
    """Fit a label map to its image by a fully connected CRF.

    Args:
        labels: (H, W) labels from 0 to K - 1; K where none is known.
        count: K, two or more.
        image: (3, h, w) RGB, in any normalisation: the range of each channel is stretched to 0 to 255.

    Returns:
        (H, W) labels.

    Raises:
        ConfigError: The package that does it is not there, or the image is none of RGB.
    """
    if len(image) != 3:
        raise ConfigError(f'A CRF compares colours, but the image has {len(image)} bands.\nRefine with "par".')
    pixels = F.interpolate(image[None].float(), labels.shape, mode="bilinear", align_corners=False)[0]
    lowest, highest = pixels.amin(dim=(1, 2), keepdim=True), pixels.amax(dim=(1, 2), keepdim=True)
    pixels = 255 * (pixels - lowest) / (highest - lowest).clamp(min=1e-8)
    probabilities = np.full((count, *labels.shape), (1 - _CERTAINTY) / (count - 1), dtype=np.float32)
    probabilities[labels == np.arange(count)[:, None, None]] = _CERTAINTY
    colours = pixels.round().byte().movedim(0, -1).cpu().numpy()
    return dense_crf(probabilities, colours).argmax(axis=0)
