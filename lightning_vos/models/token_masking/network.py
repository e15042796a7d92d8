"""Token masking: a class token for every class, whose attention to the patches is where the class is.

Shapes: B images, C bands, H W pixels, K classes (background is none of them), h w patches of an image (N of them), D
channels, L layers, M heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from lightning_vos.errors import ConfigError
from lightning_vos.models.token_masking.gates import GateSettings, HeadGates
from lightning_vos.models.token_masking.pruning import pruned_state
from lightning_vos.models.token_masking.start_weights import started
from lightning_vos.models.token_masking.vit import ClassTokenViT, ViTSettings

Classifier = Literal["concat", "shared"]
Heads = Literal["open", "gated", "all"]

_VIT, _GATES = ViTSettings(), GateSettings()


class TokenPredictions(NamedTuple):
    """What the network says of images."""

    logits: Tensor  # (B, K)
    tokens: Tensor  # (B, K, D) class tokens as the classifier saw them, masked ones 0
    patch_logits: Tensor | None  # (B, K) of the patch head, where there is one
    maps: Tensor | None  # (B, K, h, w) where asked for, with gradients on the attention alone


class ClassMaps(NamedTuple):
    """Where the classes are."""

    logits: Tensor  # (B, K)
    maps: Tensor  # (B, K, h, w), 0 or more, on no common scale
    affinity: Tensor | None  # (B, N, N) attention of patches to patches, on no common scale


class TokenMaskingNetwork(nn.Module):
    """The network of token masking.

    Differs from the paper, which does not say them: the noise on the repeated class token, and what gates start from.
    The published code's settings are those of `configs/token_masking_official.yaml`.

    Args:
        classes: K.
        vit: The transformer.
        start_weights: What training starts from: a pretrained timm model, such as `deit_base_patch16_224.fb_in1k`, a
            local file, or null for random weights. Its class token and that token's position are repeated for every
            class, with a little noise, for equal tokens would learn alike. Read by `load_start_weights`.
        register: Whether a register token takes up attention that belongs to no class.
        gates: How attention heads are gated; null: not at all.
        classifier: "concat": one linear layer sees all class tokens at once, so that every logit depends on every
            token, which is what masking works against (paper); it grows with the square of K. "shared": each class
            token has its logit by itself, of a linear layer with one output that all share, bias included; a masked
            token's logit then is the bias.
        patch_head: Whether a 3 x 3 convolution on patch tokens has class maps of its own, as published. They are
            multiplied with the attention where `fused` maps are asked for, and averaged they are `patch_logits`.
            Published training never reaches this head, so that its maps stay random.

    Raises:
        ConfigError: if there are gates, but the transformer has its closed heads removed.
        ValueError: if there is no class, or no such classifier.
    """

    def __init__(
        self,
        classes: int,
        vit: ViTSettings = _VIT,
        start_weights: str | None = None,
        *,
        register: bool = True,
        gates: GateSettings | None = _GATES,
        classifier: Classifier = "concat",
        patch_head: bool = False,
    ) -> None:
        super().__init__()
        if classes < 1:
            raise ValueError(f"TokenMaskingNetwork.classes is {classes}, expected 1 or more")
        if classifier not in ("concat", "shared"):
            raise ValueError(f"TokenMaskingNetwork.classifier is {classifier!r}, expected concat or shared")
        self.classes, self.start_weights = classes, start_weights
        self.vit = ClassTokenViT(classes, vit, register=register)
        self.gates = None if gates is None else HeadGates(vit.depth, self._gated_heads(), gates)
        self.classifier_kind: Classifier = classifier
        self.classifier = nn.Linear(*((classes * vit.width, classes) if classifier == "concat" else (vit.width, 1)))
        nn.init.trunc_normal_(self.classifier.weight, std=0.02)
        nn.init.zeros_(self.classifier.bias)
        self.patch_head = nn.Conv2d(vit.width, classes, 3, padding=1) if patch_head else None

    def _gated_heads(self) -> int:
        heads = self.vit.settings.heads
        if isinstance(heads, int):
            return heads
        raise ConfigError(
            f"The network has its closed heads removed (vit.heads is {list(heads)}), so there is none to gate.\n"
            "Set --model.network.gates=null."
        )

    def load_start_weights(self) -> None:
        """Fill the transformer from `start_weights`; nothing happens where it is null.

        Raises:
            CheckpointError: if the weights cannot be had, within two seconds when there is no network, or do not fit.
        """
        if self.start_weights is not None:
            self.vit.load_state_dict(started(self.vit, self.start_weights))

    def forward(
        self,
        images: Tensor,
        masked: Tensor | None = None,
        gate_noise: Tensor | None = None,
        *,
        with_maps: bool = False,
    ) -> TokenPredictions:
        """Say which classes images show.

        Args:
            images: (B, C, H, W), normalised as in training; H and W of a patch at least.
            masked: (B, K) bool, in training only: class tokens that the classifier sees as 0, for they are known to
                be absent. Nothing is rescaled.
            gate_noise: (L, M) uniform numbers for the gates, drawn where None.
            with_maps: Whether the class maps of all layers and heads are wanted with their gradient, as the published
                diversity loss uses them: gates do not count, and a patch head is multiplied in without a gradient.

        Raises:
            ValueError: if `masked` is given in an evaluation, which labels must not enter.
            ConfigError: if images have other bands, or are smaller than a patch.
        """
        if masked is not None and not self.training:
            raise ValueError("TokenMaskingNetwork: `masked` tells of labels, which must not enter an evaluation")
        gates = None if self.gates is None else self.gates.sample(gate_noise)
        depth = self.vit.settings.depth
        output = self.vit(images, gates, self._looks(range(depth), "all") if with_maps else None)
        tokens = output.class_tokens
        if masked is not None:
            tokens = tokens.masked_fill(masked[..., None], 0)
        patch_maps = None if self.patch_head is None else self.patch_head(output.patches)
        maps = output.maps
        if maps is not None and patch_maps is not None:
            maps = maps * patch_maps.detach().relu()
        patch_logits = None if patch_maps is None else patch_maps.mean(dim=(2, 3))
        return TokenPredictions(self._classify(tokens), tokens, patch_logits, maps)

    def _classify(self, tokens: Tensor) -> Tensor:
        scores: Tensor = self.classifier(tokens.flatten(1) if self.classifier_kind == "concat" else tokens)
        return scores if self.classifier_kind == "concat" else scores[..., 0]

    @torch.no_grad()
    def maps(
        self,
        images: Tensor,
        layers: int | Sequence[int] = 1,
        heads: Heads = "open",
        *,
        fused: bool = False,
        affinity: bool = False,
    ) -> ClassMaps:
        """Where the classes are: attention of class tokens to patches, summed over layers; gates are without chance.

        Args:
            images: (B, C, H, W), as `forward`.
            layers: The last so many, or their numbers from 0 on. The paper looks at the last one, the published code
                at all.
            heads: "open": the mean over the heads whose gate is open (paper); "gated": the sum of all, each times its
                gate, divided by their number; "all": the mean of all, whatever their gates (published). Where no
                layer asked for has an open head, the deepest that has one stands in; without any, maps are 0.
            fused: Multiply with what the patch head sees, as published.
            affinity: Whether attention of patches to patches is wanted, of the same layers and heads.

        Raises:
            ValueError: if there is no such layer.
            ConfigError: if maps of closed heads are asked for that have been removed, or fused ones without a patch
                head; or as `forward`.
        """
        depth = self.vit.settings.depth
        chosen = range(depth - layers, depth) if isinstance(layers, int) else layers
        if not chosen or min(chosen) < 0 or max(chosen) >= depth:
            raise ValueError(f"layers is {layers}, expected 1 to {depth} as a number, or numbers from 0 to {depth - 1}")
        if heads != "open" and not isinstance(self.vit.settings.heads, int):
            raise ConfigError(
                f"Maps of {heads} heads are asked for, but the closed ones have been removed from this network.\n"
                "Ask for heads=open, or use the weights before `convert --prune`."
            )
        if fused and self.patch_head is None:
            raise ConfigError("Fused maps need a patch head, which this network has not: set fused to false.")
        gates = None if self.gates is None else self.gates.values()
        output = self.vit(images, gates, self._looks(chosen, heads), affinity=affinity)
        maps = cast("Tensor", output.maps)
        if fused and self.patch_head is not None:
            maps = maps * self.patch_head(output.patches).relu()
        return ClassMaps(self._classify(output.class_tokens), maps, output.affinity)

    def _looks(self, layers: Sequence[int], heads: Heads) -> dict[int, Tensor]:
        """Layer -> (M,) how much the map of each of its heads counts."""
        device = self.classifier.weight.device
        if self.gates is None:
            gates = [torch.ones(count, device=device) for count in self.vit.settings.layer_heads]
        else:
            gates = list(self.gates.values().detach())
        if heads == "all":
            return {layer: torch.ones_like(gates[layer]) / len(gates[layer]) for layer in layers}
        has_open = [layer for layer, gate in enumerate(gates) if bool((gate > 0).any())]
        chosen = [layer for layer in layers if layer in has_open] or has_open[-1:] or list(layers)
        if heads == "gated":
            return {layer: gates[layer] / len(gates[layer]) for layer in chosen}
        return {layer: (gates[layer] > 0) / (gates[layer] > 0).sum().clamp(min=1) for layer in chosen}

    def open_heads(self) -> list[int]:
        """How many heads an evaluation uses, of each layer."""
        if self.gates is None:
            return list(self.vit.settings.layer_heads)
        return self.gates.open().sum(dim=1).tolist()

    def pruned(self) -> TokenMaskingNetwork:
        """A copy without closed heads and without gates, which says the same in an evaluation.

        Raises:
            ConfigError: if there are no gates that say which heads are closed.
        """
        if self.gates is None:
            raise ConfigError("The network has no gates, so no head is closed and nothing can be removed.")
        settings = self.vit.settings
        smaller = replace(settings, heads=tuple(self.open_heads()), head_width=settings.channels)
        with torch.device("meta"):  # nothing is drawn for what is assigned below
            network = TokenMaskingNetwork(
                self.classes,
                smaller,
                register=self.vit.register is not None,
                gates=None,
                classifier=self.classifier_kind,
                patch_head=self.patch_head is not None,
            )
        state = pruned_state(self.state_dict(), self.gates.values().detach(), settings.channels)
        network.load_state_dict(state, assign=True)
        return network.train(self.training)
