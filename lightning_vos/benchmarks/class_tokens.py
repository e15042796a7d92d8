"""What token masking costs: with attention maps of more or fewer layers, and with tokens for more or fewer classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_vos.benchmarks.frame import allocated_at_peak
from lightning_vos.benchmarks.workload import Setting, SyntheticVideo, median_seconds
from lightning_vos.models.token_masking.criterion import Criterion
from lightning_vos.models.token_masking.masking import draw_masked
from lightning_vos.models.token_masking.module import TokenMasking
from lightning_vos.models.token_masking.network import Classifier, TokenMaskingNetwork, TokenPredictions

_SHOWN = 2  # classes that an image shows


class Case(NamedTuple):
    """A network, and the attention that is looked at."""

    what: str
    classes: int
    classifier: Classifier
    layers: tuple[int, ...] = ()  # whose maps are computed, beside the fused attention
    is_fused: bool = True  # else every layer computes, and in training keeps, the whole map of every head


class TokenCost(NamedTuple):
    """What a case costs."""

    parameters: int
    forward_seconds: float  # without gradients; median; CPU time, on a GPU wall time
    forward_bytes: int  # of tensors at the peak, above the network
    step_seconds: float  # forward, backward and optimizer
    step_bytes: int  # above the network and what the optimizer keeps: activations and gradients


def map_cases(module: TokenMasking) -> list[Case]:
    """The network of a recipe with maps of no layer, of those that its label maps are made of, and of all."""
    network, asked = module.network, module.maps.layers
    depth = network.vit.settings.depth
    last, every = tuple(range(depth - asked, depth) if isinstance(asked, int) else asked), tuple(range(depth))
    return [
        Case(what, network.classes, network.classifier_kind, layers, is_fused)
        for what, layers, is_fused in (
            ("no maps", (), True),
            *((f"maps of {len(layers)} of {depth} layers", layers, True) for layers in dict.fromkeys((last, every))),
            ("no fused attention", (), False),
        )
    ]


def class_cases(classes: Sequence[int]) -> list[Case]:
    """Both classifiers over these numbers of classes, without maps."""
    kinds: tuple[Classifier, ...] = ("concat", "shared")
    return [Case(f"{count}, {kind}", count, kind) for kind, count in product(kinds, classes)]


def network_of(case: Case, module: TokenMasking) -> TokenMaskingNetwork:
    """The network of a recipe with the classes and the classifier of a case, and with random weights."""
    given = module.network
    return TokenMaskingNetwork(
        case.classes,
        given.vit.settings,
        register=given.vit.register is not None,
        gates=None if given.gates is None else given.gates.settings,
        classifier=case.classifier,
    )


def measure_class_tokens(
    module: TokenMasking, case: Case, setting: Setting, batch: int, repeats: int
) -> Iterator[TokenCost]:
    """Measure a forward pass and a step of training of images that each show two classes; one cost.

    With maps the loss has the diversity of the published code, so that gradients go through them.
    """
    setting.prepare()
    device = torch.device(setting.device)
    network = network_of(case, module).to(device).train()
    images, labels = _draw(network, setting, batch, device)
    optimizer = module.optimizer(network.parameters())
    loss = partial(_loss, network, images, labels, module.masking.rate, case.layers)

    def forward() -> None:
        with torch.no_grad(), setting.autocast():
            loss()

    def step() -> None:
        optimizer.zero_grad()
        with setting.autocast():
            total = loss()
        total.backward()
        optimizer.step()

    attention: AbstractContextManager[None] = nullcontext() if case.is_fused else sdpa_kernel(SDPBackend.MATH)
    with attention:
        spent = [median_seconds(work, repeats, device) for work in (forward, step)]
        optimizer.zero_grad()
        peaks = [allocated_at_peak(work, device) for work in (forward, step)]
    parameters = sum(parameter.numel() for parameter in network.parameters())
    yield TokenCost(parameters, spent[0], peaks[0], spent[1], peaks[1])


def _draw(network: TokenMaskingNetwork, setting: Setting, batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images (B, C, H, W) and labels (B, K)."""
    bands = network.vit.settings.bands
    video = SyntheticVideo(setting.size, 1)
    images = torch.stack([video.frame(number) for number in range(batch)]).repeat(1, -(-bands // 3), 1, 1)[:, :bands]
    labels = (torch.arange(network.classes) < _SHOWN).float().expand(batch, -1)
    return images.to(device), labels.to(device)


def _loss(network: TokenMaskingNetwork, images: Tensor, labels: Tensor, rate: float, layers: Sequence[int]) -> Tensor:
    """As a step of training has it, but with maps of these layers alone; the network's own takes those of all."""
    heads = network.vit.settings.layer_heads
    looks = {layer: torch.full((heads[layer],), 1 / max(heads[layer], 1), device=images.device) for layer in layers}
    output = network.vit(images, None if network.gates is None else network.gates.sample(), looks)
    tokens = output.class_tokens.masked_fill(draw_masked(labels, rate)[..., None], 0)
    is_shared = network.classifier_kind == "shared"
    logits = network.classifier(tokens)[..., 0] if is_shared else network.classifier(tokens.flatten(1))
    criterion = Criterion(diversity=0.1 if layers else 0.0)
    penalty = None if network.gates is None else network.gates.penalty()
    return criterion(TokenPredictions(logits, tokens, None, output.maps), labels, penalty).total
