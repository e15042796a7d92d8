"""Class maps of one image: at several sizes, mirrored, and spread to patches that are alike.

Shapes: C bands, H W pixels of what the network sees, K classes, h w patches (N of them).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_vos.models.token_masking.pseudo_masks import normalised

if TYPE_CHECKING:
    from lightning_vos.models.token_masking.network import TokenMaskingNetwork


@dataclass(frozen=True)
class MapSettings:
    """Which attention is looked at, and how often.

    Attributes:
        layers: The last so many, or their numbers from 0 on. Paper: the last one; published code: all, which are 12.
        heads: "open": the mean of those whose gate is open (paper); "gated": each times its gate; "all": the plain mean
            of all (published).
        fused: Whether maps are multiplied with those of the patch head (published), if the network has one.
        affinity: Whether each map is multiplied once with the attention of patches to patches, so that it spreads to
            patches that are alike. Neither paper nor published code do it, but others in the field.
        scales: Sizes at which the image is looked at, as factors. With several, or with `flip`, the maps of each look
            are brought to 0 to 1, and their mean is taken; so is that of the probabilities.
        flip: Whether each size is looked at mirrored, too.
        remainder: What happens to pixels beyond a multiple of the patch: the image is "resized" to the nearest
            multiple, or they are "dropped", and the maps of the others laid over the whole image (published).

    Raises:
        ValueError: One of them is not what is said here, or they do not go together.
    """

    layers: int | Sequence[int] = 1
    heads: Literal["open", "gated", "all"] = "open"
    fused: bool = False
    affinity: bool = False
    scales: Sequence[float] = (1.0,)
    flip: bool = False
    remainder: Literal["resized", "dropped"] = "resized"

    def __post_init__(self) -> None:
        """Refuse what gives no map."""
        if self.heads not in ("open", "gated", "all"):
            raise ValueError(f"heads is {self.heads!r}, expected open, gated or all")
        if self.remainder not in ("resized", "dropped"):
            raise ValueError(f"remainder is {self.remainder!r}, expected resized or dropped")
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(f"scales is {list(self.scales)}, expected one or more factors above 0")
        if self.remainder == "dropped" and (self.flip or tuple(self.scales) != (1.0,)):
            raise ValueError("remainder dropped leaves out other pixels at each scale and flip: set it to resized")

    def describe(self) -> str:
        """Name the settings in a line that is printed beside scores."""
        layers = f"last {self.layers}" if isinstance(self.layers, int) else " ".join(map(str, self.layers))
        switches = [name for name in ("fused", "affinity", "flip") if getattr(self, name)]
        scales = " ".join(f"{scale:g}" for scale in self.scales)
        dropped = ["remainder dropped"] if self.remainder == "dropped" else []
        return ", ".join([f"layers {layers}", f"heads {self.heads}", f"scales {scales}", *switches, *dropped])


_SETTINGS = MapSettings()


@torch.no_grad()
def class_maps(network: TokenMaskingNetwork, image: Tensor, settings: MapSettings = _SETTINGS) -> tuple[Tensor, Tensor]:
    """Find where the classes are in an image.

    Args:
        network: In evaluation mode.
        image: (C, H, W) as the network sees images, of any size.
        settings: Which attention is looked at, and how often.

    Returns:
        (K, h, w) float32 maps, 0 or more, that are laid over the whole image: on no common scale after one look, in
        [0, 1] after several; (K,) float32 probabilities.
    """
    looks = [_looked(network, image, scale, settings, mirrored=False) for scale in settings.scales]
    if settings.flip:
        looks += [_looked(network, image, scale, settings, mirrored=True) for scale in settings.scales]
    probabilities = torch.stack([found for _, found in looks]).mean(dim=0)
    if len(looks) == 1:
        return looks[0][0], probabilities
    largest = max((maps.shape[1:] for maps, _ in looks), key=torch.Size.numel)
    stretched = [
        F.interpolate(normalised(maps)[None], largest, mode="bilinear", align_corners=False)[0] for maps, _ in looks
    ]
    return torch.stack(stretched).mean(dim=0), probabilities


def _looked(
    network: TokenMaskingNetwork, image: Tensor, scale: float, settings: MapSettings, *, mirrored: bool
) -> tuple[Tensor, Tensor]:
    """The (K, h, w) maps and (K,) probabilities of one look, those of a mirrored one turned back."""
    if settings.remainder == "resized":
        patch = network.vit.settings.patch
        size = [max(round(scale * side / patch), 1) * patch for side in image.shape[1:]]
        image = F.interpolate(image[None], size, mode="bilinear", align_corners=False, antialias=True)[0]
    found = network.maps(
        (image.flip(2) if mirrored else image)[None],
        settings.layers,
        settings.heads,
        fused=settings.fused,
        affinity=settings.affinity,
    )
    maps = found.maps[0].float()
    if found.affinity is not None:
        maps = _spread(maps, found.affinity[0].float())
    return maps.flip(2) if mirrored else maps, found.logits[0].float().sigmoid()


def _spread(maps: Tensor, affinity: Tensor) -> Tensor:
    """Each patch takes the mean of all, weighted by (N, N) how much it attends to them."""
    weights = affinity / affinity.sum(dim=1, keepdim=True).clamp(min=1e-8)
    return (maps.flatten(1) @ weights.T).view_as(maps)
