"""Image encoders: any timm model or our Swin as three feature maps, with the start weights asked for or a refusal."""

from __future__ import annotations

import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from huggingface_hub import constants, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError
from timm.layers import DropPath, freeze_batch_norm_2d
from torch import Tensor, nn

from lightning_vos.errors import CheckpointError, ConfigError
from lightning_vos.io.checkpoints import read_state_dict
from lightning_vos.layers.swin import SWIN_FROM_PUBLISHED, Swin

_NETWORK_WAIT = 1.5  # seconds to find out that there is no network
_TAKES_ANY_SIZE = "Choose a model that takes any size, such as resnet50, convnext_tiny, swin_base_patch4_window7_224."
_OPTION = "--model.network.backbone.start_weights"
_FILES = ("model.safetensors", "pytorch_model.bin")  # of weights on the hub


class Backbone(nn.Module):
    """A timm model as an encoder of feature maps at three strides; a `swin_..._patch4_window...` is our `Swin`.

    A map of stride s has ceil(H / s) x ceil(W / s) positions, for frames of any size. Most models give such maps by
    themselves. Frames of one that does not (ConvNeXt rounds down, HRNet takes multiples of 32) are padded with the mean
    colour, right and bottom, to the multiple it needs, and its maps are cropped.

    Args:
        name: Architecture, any timm name with features at the strides asked for that takes frames of any size.
        start_weights: What training starts from: a pretrained timm model (`resnet50.tv_in1k`), a local file, or null
            for random weights. Read by `load_start_weights`, not by the constructor.
        strides: Of the three maps; the first stage of a stride counts.
        final: Whether the output after the model's very last stage is the fourth map; else the third is given twice.
            It lies at the last of the strides if the model can be dilated (ResNet, MobileNetV2), else at the model's
            own last stride (Swin: 32). What comes after it, such as the norm of a classifier, is dropped.
        drop_path: Probability of skipping the last residual block for a sample in training (stochastic depth), as the
            model ramps it; 0 leaves a timm model at its default.
        frozen_norms: Keep batch normalisation at its start statistics and affine, as the published recipes do.
        frozen_stages: How many parts do not learn, from the stem on: 0 none, 1 the stem, 2 all up to the first map, or
            up to stride 4 where the first map is coarser. Nothing of them is skipped in training.

    Raises:
        ConfigError: if timm does not know the name, or the model has no map at a stride, does not take frames of any
            size, knows no `drop_path`, or has a first map that is no part to freeze.
    """

    def __init__(
        self,
        name: str,
        start_weights: str | None = None,
        *,
        strides: tuple[int, int, int] = (4, 8, 16),
        final: bool = False,
        drop_path: float = 0.0,
        frozen_norms: bool = True,
        frozen_stages: int = 2,
    ) -> None:
        super().__init__()
        if frozen_stages not in (0, 1, 2):
            raise ValueError(f"Backbone.frozen_stages is {frozen_stages}, expected 0 (none), 1 or 2")
        if not timm.is_model(name):
            near = timm.list_models(f"*{name.split('_')[0]}*")[:3]
            raise ConfigError(f"timm knows no model {name!r}. Close names: {', '.join(near) or 'none'}.")
        body = Swin.named(name, drop_path) or _timm_body(name, drop_path, strides[-1] if final else None)
        stages = [_stage_of(body, name, stride) for stride in strides]
        end = int(body.feature_info[-1]["reduction"])
        self.last_stride = end if final else strides[-1]
        if not final:
            body.prune_intermediate_layers(stages, prune_norm=True, prune_head=True)
        self.name, self.start_weights, self.strides, self.final = name, start_weights, strides, final
        channels = [int(body.feature_info[stage]["num_chs"]) for stage in stages]
        self.channels = (*channels, int(body.num_features) if final else channels[-1])
        self.stages = stages
        if frozen_norms:
            for module in body.modules():
                # timm starts the last norm of a residual block at zero, which a frozen norm could never leave.
                if isinstance(module, nn.BatchNorm2d):
                    nn.init.ones_(module.weight)
        self.body: Any = freeze_batch_norm_2d(body) if frozen_norms else body
        self.multiple = self._fitting_multiple(end)
        if final:
            self._prune_unused()
        self._freeze(frozen_stages)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor((0.485, 0.456, 0.406)).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor((0.229, 0.224, 0.225)).view(1, 3, 1, 1), persistent=False)

    def _freeze(self, stages: int) -> None:
        """Stop the gradient of the first parts; timm registers modules in the order of execution."""
        if stages == 0:
            return
        names = [name for name, _ in self.body.named_modules() if name]
        end = _stage_of(self.body, self.name, min(self.strides[0], 4)) if stages > 1 else None
        last = names[0] if end is None else self.body.feature_info[end]["module"]
        ends = [i for i, name in enumerate(names) if f"{name}.".startswith(f"{last}.")]
        if not ends:
            raise ConfigError(
                f"Backbone {self.name!r}: its first map is no part of its own, so nothing can be frozen up to it "
                "(frozen_stages is 2). Set frozen_stages to 0 (all learns) or 1 (not the stem)."
            )
        for name in names[: ends[-1] + 1]:
            module = self.body.get_submodule(name)
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)
            if isinstance(module, DropPath):
                module.drop_prob = 0.0

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Maps of (B, 3, H, W) RGB in [0, 1]: (B, C, h, w) at the three strides, then the last one.

        Frames are normalised with the ImageNet mean and standard deviation here.
        """
        height, width = frames.shape[2:]
        padding = (0, -width % self.multiple, 0, -height % self.multiple)
        first, second, third, last = (
            features[:, :, : -(-height // stride), : -(-width // stride)]
            for features, stride in zip(
                self._maps(F.pad((frames - self.mean) / self.std, padding)),
                (*self.strides, self.last_stride),
                strict=True,
            )
        )
        return first, second, third, last

    def _maps(self, normalised: Tensor) -> list[Tensor]:
        last, maps = self.body.forward_intermediates(normalised, self.stages)
        return [*maps, last if self.final else maps[-1]]

    @torch.no_grad()
    def _fitting_multiple(self, end: int) -> int:
        """What sides of frames must be a multiple of for maps of ceil(side / stride); tried out on an empty frame.

        `end` is the model's last stride, kept or not: HRNet works at 32 throughout.
        """
        height, width = 4 * self.strides[-1] + 1, 5 * self.strides[-1]
        found: object = None
        self.body.eval()
        for multiple in (1, self.strides[-1], end):
            padded = [side + -side % multiple for side in (height, width)]
            expected = [
                (channels, *(-(-side // stride) for side in padded))
                for channels, stride in zip(self.channels, (*self.strides, self.last_stride), strict=True)
            ]
            try:
                found = [tuple(features.shape[1:]) for features in self._maps(torch.zeros(1, 3, *padded))]
            except Exception as error:  # what models raise at a size that is not theirs has no end
                found = error
            if found == expected:
                self.body.train()
                return multiple
        raise ConfigError(
            f"Backbone {self.name!r} cannot be used: for a frame of {padded[0]} x {padded[1]} pixels\n"
            f"  expected maps (channels, height, width) {expected}\n  found {str(found)[:200]}\n{_TAKES_ANY_SIZE}"
        )

    @torch.enable_grad()
    def _prune_unused(self) -> None:
        """Drop the parts that no map depends on, such as a classifier's norm: distributed training stops at them.

        What timm would drop as the head is for some models (MobileNetV2) the end of the last map.
        """
        side = 4 * self.strides[-1]
        self.body.eval()
        maps = self._maps(torch.zeros(1, 3, *(side + -side % self.multiple,) * 2))
        self.body.train()
        parameters = [parameter for parameter in self.body.parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad([features.sum() for features in maps], parameters, allow_unused=True)
        unused = {parameter for parameter, found in zip(parameters, gradients, strict=True) if found is None}
        for name, part in list(self.body.named_children()):
            own = set(part.parameters())
            if own and own <= unused:
                setattr(self.body, name, nn.Identity())

    def load_start_weights(self) -> None:
        """Fill the backbone from `start_weights`; nothing happens where it is null.

        Raises:
            CheckpointError: if the weights cannot be had, within two seconds when there is no network, or do not fit.
        """
        if self.start_weights is None:
            return
        state = start_state(self.start_weights, _OPTION)
        for mark, table in _OTHER_LAYOUTS.items():
            if mark in state:
                parts = {name: name.rpartition(".") for name in state}
                state = {f"{table.get(parts[n][0], parts[n][0])}.{parts[n][2]}": value for n, value in state.items()}
        own = self.body.state_dict()
        # Classifiers have none of the norms that our Swin puts on its maps; those keep the scale 1 and shift 0.
        optional = ("norms.",) if isinstance(self.body, Swin) else ()
        may_lack = {name for name in own if name.endswith("num_batches_tracked") or name.startswith(optional)}
        missing = sorted(own.keys() - state.keys() - may_lack)
        wrong = sorted(name for name in own.keys() & state.keys() if own[name].shape != state[name].shape)
        if missing or wrong:
            raise CheckpointError(
                f"Start weights {self.start_weights!r} do not fit the backbone {self.name!r}:\n"
                f"  {len(missing)} entries missing {missing[:2]}, {len(wrong)} of another shape {wrong[:2]}.\n"
                "Give weights of this architecture in timm's layout, or in that of torchvision (ResNet, MobileNetV2) "
                "or Microsoft (Swin)."
            )
        self.body.load_state_dict({name: value for name, value in state.items() if name in own}, strict=False)


def _timm_body(name: str, drop_path: float, output_stride: int | None) -> Any:
    """The timm model, dilated to keep `output_stride` to its end where that is given and can be done."""
    settings: dict[str, Any] = {
        "pretrained": False,
        "num_classes": 0,
        "global_pool": "",
        "drop_path_rate": drop_path or None,
    }
    body: Any = None
    if output_stride is not None:
        with suppress(TypeError, ValueError, NotImplementedError, AssertionError):
            body = timm.create_model(name, output_stride=output_stride, **settings)
    try:
        body = timm.create_model(name, **settings) if body is None else body
    except TypeError as error:  # the constructor knows no such setting
        raise ConfigError(f"Backbone {name!r} cannot be built (drop_path is {drop_path}): {error}.") from error
    if not hasattr(body, "feature_info") or not hasattr(body, "forward_intermediates"):
        raise ConfigError(f"timm gives no intermediate maps of {name!r}. {_TAKES_ANY_SIZE}")
    return body


def _stage_of(body: Any, name: str, stride: int) -> int:
    """The first stage of a stride; what follows it at the same stride is the dilated rest."""
    stages = [i for i, stage in enumerate(body.feature_info) if stage["reduction"] == stride]
    if not stages:
        found = sorted({stage["reduction"] for stage in body.feature_info})
        raise ConfigError(
            f"Backbone {name!r} has no features at stride {stride}, only at {found}. Choose other strides."
        )
    return stages[0]


def start_state(weights: str, option: str) -> dict[str, Tensor]:
    """The entries of a pretrained timm model, such as `resnet50.tv_in1k`, or of a local file.

    Args:
        weights: Its name or path.
        option: The option of the command that names others, for messages.

    Raises:
        CheckpointError: if they cannot be had, within two seconds when there is no network.
    """
    path = Path(weights)
    is_file = path.suffix in {".pth", ".pt", ".safetensors", ".bin", ".ckpt"} or len(path.parts) > 1
    return read_state_dict(path) if is_file else _pretrained_state(weights, option)


def _pretrained_state(name: str, option: str) -> dict[str, Tensor]:
    if not timm.is_model_pretrained(name):
        raise CheckpointError(
            f"timm has no pretrained weights called {name!r}. Give a name such as resnet50.tv_in1k, a file, or null."
        )
    settings: Any = timm.get_pretrained_cfg(name)
    places = [try_to_load_from_cache(settings.hf_hub_id, file) for file in _FILES] if settings.hf_hub_id else []
    cached = next((place for place in places if isinstance(place, str)), None)
    try:
        if cached is None:
            _check_network(hf_hub_url(settings.hf_hub_id, "config.json") if settings.hf_hub_id else settings.url)
        # A cached file is named outright, for without a network the hub's client asks for its date over and over.
        overlay = {"file": cached} if cached else None
        return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay).state_dict()
    except (OSError, HfHubHTTPError) as error:
        raise CheckpointError(
            f"Start weights {name!r} cannot be had: they are not in the local cache, and {error}. "
            f"Connect, or name a local file or null (random) by {option}, or a whole model by --model.weights FILE."
        ) from error


def _check_network(address: str) -> None:
    """Ask for an address once, for the hub's client tries for most of a minute; raises OSError."""
    if constants.HF_HUB_OFFLINE:
        raise OSError("HF_HUB_OFFLINE is set")
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=_NETWORK_WAIT).close()
    except OSError as error:
        raise OSError(f"{address} is out of reach ({error})") from error


def _mobilenetv2_from_torchvision() -> dict[str, str]:
    """Module names of torchvision's MobileNetV2 -> timm's."""
    names = {"features.0.0": "conv_stem", "features.0.1": "bn1", "features.18.0": "conv_head", "features.18.1": "bn2"}
    first = {"0.0": "conv_dw", "0.1": "bn1", "1": "conv_pw", "2": "bn2"}
    others = {"0.0": "conv_pw", "0.1": "bn1", "1.0": "conv_dw", "1.1": "bn2", "2": "conv_pwl", "3": "bn3"}
    number = 1  # torchvision counts the blocks of all stages through
    for stage, blocks in enumerate((1, 2, 3, 4, 3, 3, 1)):
        for block in range(blocks):
            for theirs, ours in (first if number == 1 else others).items():
                names[f"features.{number}.conv.{theirs}"] = f"blocks.{stage}.{block}.{ours}"
            number += 1
    return names


MOBILENETV2_FROM_TORCHVISION = _mobilenetv2_from_torchvision()
"""torchvision's module name -> timm's, for MobileNetV2; ResNets have the same names in both."""

_OTHER_LAYOUTS = {
    "features.0.0.weight": MOBILENETV2_FROM_TORCHVISION,
    "layers.0.downsample.reduction.weight": SWIN_FROM_PUBLISHED,
}
"""An entry that only another layout of weight files has -> its module names in ours."""
