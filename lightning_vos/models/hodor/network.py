"""HODOR: objects as descriptors that are written in any frame and read in any other (Athar et al.).

Shapes: B batch, N object slots, K background cells, H W output size, h w network size, h8 w8 coarse feature grid (an
eighth of h w with the paper's backbone), C channels.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_vos.backbones import Backbone
from lightning_vos.errors import CheckpointError, ConfigError
from lightning_vos.io.checkpoints import read_state_dict
from lightning_vos.layers.swin import SWIN_FROM_PUBLISHED
from lightning_vos.models.hodor.decoder import DescriptorHistory, ObjectDecoder, never
from lightning_vos.models.hodor.encoder import Descriptors, ObjectEncoder, background_cells, leaves_trace
from lightning_vos.models.hodor.memory import DescriptorMemory, RememberedFrame, WindowRules
from lightning_vos.models.hodor.pyramid import FPN_FROM_PUBLISHED, Pyramid
from lightning_vos.models.hodor.soft_masked_attention import STRENGTHS, Masking
from lightning_vos.vos.canvas import PaddingCanvas, View
from lightning_vos.vos.network import Given, Masks, VOSNetwork

_CANVAS = PaddingCanvas()
_TRAIN_RULES, _TEST_RULES = WindowRules(), WindowRules(window=7)


class HODORFeatures(NamedTuple):
    """What HODOR sees of a frame."""

    coarse: Tensor  # (B, C, h8, w8)
    fine: Tensor  # (B, C, 2 h8, 2 w8)


class HODORNetwork(VOSNetwork[DescriptorMemory]):
    """The network of HODOR.

    Args:
        backbone: The image encoder; the second of its strides is that of the coarse map, twice the first.
        detector: A detector's checkpoint to start from, whose `backbone.*` and `neck.*` entries fill backbone and
            pyramid, Swin's named as its authors' own detection code does (`backbone.layers.0.blocks.0.mlp.fc1`); None
            starts the backbone from its own start weights and the pyramid at random. The published training starts
            from a detector.
        masking: How masks act in the encoder's attention, see `SoftMaskedAttention`.
        strengths: Initial masking strengths, one a head, see `SoftMaskedAttention`.
        divided_strengths: See `SoftMaskedAttention`.
        channels: C, a multiple of 64.
        layers: Of the encoder and of the decoder.
        background: K, descriptors of the background: 1, 2, 4, 9, 12 or 16.
        canvas: The sizes at which videos are tested.
        train_rules: Rules of the memory in training, whose window is none: cycles choose what is read.
        test_rules: Rules of the memory at test.
    """

    capacity = None
    memory_knobs = "model.network.test_rules.window (fewer frames), or model.network.canvas.short_side"

    def __init__(
        self,
        backbone: Backbone,
        detector: str | None = None,
        masking: Masking = "soft",
        strengths: Sequence[float] = STRENGTHS,
        *,
        divided_strengths: bool = False,
        channels: int = 256,
        layers: int = 5,
        background: int = 9,
        canvas: PaddingCanvas = _CANVAS,
        train_rules: WindowRules = _TRAIN_RULES,
        test_rules: WindowRules = _TEST_RULES,
    ) -> None:
        super().__init__()
        fine, coarse = backbone.strides[:2]
        if coarse != 2 * fine or not backbone.final:
            raise ConfigError(
                f"HODOR needs a coarse map of twice the stride of the fine one, and the last map: the backbone has "
                f"strides {list(backbone.strides)}, final={backbone.final}.\n"
                "Set --model.network.backbone.strides=[4,8,16] and --model.network.backbone.final=true."
            )
        if channels < 64 or channels % 64 or layers < 1 or canvas.multiple % coarse:
            raise ValueError(
                f"HODORNetwork: channels is {channels}, layers {layers}, canvas.multiple {canvas.multiple}; expected a "
                f"multiple of 64, at least 1 layer, and a multiple of {coarse}, the stride of the coarse map"
            )
        if train_rules.window is not None:
            raise ValueError(
                f"HODORNetwork: train_rules.window is {train_rules.window}, expected null: cycles choose what is read"
            )
        self.canvas: PaddingCanvas = canvas
        self.train_rules, self.test_rules = train_rules, test_rules
        self.detector, self.background = detector, background
        self.strides = (fine, coarse)
        self.backbone = backbone
        self.pyramid = Pyramid(backbone.channels, channels)
        self.encoder = ObjectEncoder(channels, layers, background, masking, strengths, divided=divided_strengths)
        self.decoder = ObjectDecoder(channels, layers, len(strengths))

    def load_start_weights(self) -> None:
        """Fill backbone and pyramid from the detector, or the backbone alone.

        Raises:
            CheckpointError: if the weights cannot be had, or lack an entry, or have one of another shape.
        """
        if self.detector is None:
            self.backbone.load_start_weights()
            return
        path = Path(self.detector)
        found = _from_detector(read_state_dict(path))
        own = {
            name: value
            for name, value in self.state_dict().items()
            if name.startswith(("backbone.body.", "pyramid.fpn."))
        }
        missing = sorted(own.keys() - found.keys())
        wrong = sorted(name for name in own.keys() & found.keys() if own[name].shape != found[name].shape)
        if missing or wrong:
            raise CheckpointError(
                f"The detector {path} does not fit this backbone and its pyramid:\n"
                f"  {len(missing)} entries missing {missing[:2]}, {len(wrong)} of another shape {wrong[:2]}.\n"
                "Expected a Swin-T detector with an FPN, named as the authors of Swin do in their detection code, such "
                "as backbone.layers.0.blocks.0.mlp.fc1.weight and neck.lateral_convs.0.conv.weight.\n"
                "Or leave --model.network.detector out: the pyramid then starts at random."
            )
        self.load_state_dict({name: found[name] for name in own}, strict=False)

    def encode(self, frames: Tensor) -> HODORFeatures:
        """Features of (B, 3, h, w) RGB in [0, 1], h and w multiples of the canvas's."""
        fine, coarse = self.pyramid(self.backbone(frames))
        return HODORFeatures(coarse, fine)

    def start(self, valid: Tensor, rules: WindowRules, draws: None = None) -> DescriptorMemory:
        """An empty memory."""
        return DescriptorMemory(valid, rules)

    def segment(
        self,
        features: HODORFeatures,
        memory: DescriptorMemory,
        view: View,
        *,
        time: int,
        given: Given | None = None,
        sources: Tensor | None = None,
    ) -> tuple[Tensor, DescriptorMemory]:
        """Decode a frame with the descriptors of earlier ones, and with those of objects that begin in it.

        An object that is given but leaves no trace in the coarse map is too small to be described, and left out. The
        published code leaves out those without a pixel above 0.5 there, too.

        Returns:
            (B, 1 + K + N, 2 h8, 2 w8) logits: what is in no cell, the cells of the background, the objects.

        Raises:
            ConfigError: if `sources` names a time of which nothing is remembered.
        """
        current = None
        if given is not None:
            planes = self._planes(self._enter(given.planes, view))
            begun = given.stated & memory.valid & leaves_trace(planes[:, self.background :])
            described = self.encoder(features.coarse, planes, begun)
            current = _remembered(time, described, begun, has_background=not memory.frames)
        history = self._history(memory, current, time, sources)
        embeddings = (self.encoder.background_embedding, self.encoder.object_embedding)
        return self.decoder(*features, history, embeddings), replace(memory, current=current)

    def _history(
        self, memory: DescriptorMemory, current: RememberedFrame | None, time: int, sources: Tensor | None
    ) -> DescriptorHistory:
        """What a frame is decoded with: remembered frames of the window, or of `sources`, and the frame at hand."""
        window = memory.rules.window
        frames = [f for f in memory.frames if window is None or sources is not None or time - f.time <= window]
        chosen = [None if sources is None else (sources == f.time).any(dim=1) for f in frames]
        if sources is not None:
            known = torch.tensor([f.time for f in frames], device=sources.device)
            if not bool(torch.isin(sources, known).all()):
                raise ConfigError(
                    f"HODOR is to read frames {sources.unique().tolist()}, but remembers {known.tolist()}."
                )
        if current is not None:
            # A slot that is stated anew is described by this statement alone.
            frames, chosen = [*frames, current], [*chosen, None]
        slots = memory.valid.shape[1]
        objects, described, background = [], [], []
        for frame, is_read in zip(frames, chosen, strict=True):
            missing = slots - frame.objects.shape[1]
            valid = F.pad(frame.described, (0, missing)) & memory.valid
            if current is not None and frame is not current:
                valid = valid & ~current.described
            counts = torch.full_like(memory.valid[:, 0], frame.has_background)
            if is_read is not None:
                valid, counts = valid & is_read[:, None], counts & is_read
            objects.append(F.pad(frame.objects, (0, 0, 0, missing)))
            described.append(valid)
            background.append(counts)
        return DescriptorHistory(
            background=torch.stack([frame.background for frame in frames], dim=2),
            objects=torch.stack(objects, dim=2),
            background_valid=torch.stack(background, dim=1),
            objects_valid=torch.stack(described, dim=2),
        )

    def resolve(
        self,
        logits: tuple[Tensor | None, ...],
        memories: tuple[DescriptorMemory, ...],
        view: View,
        given: Given | None = None,
    ) -> Masks:
        """Upsample and paste what is given.

        Each descriptor of the background competes by itself: logits and probabilities are those of the best one, then
        of the objects, and labels their arg-max. What is remembered are probabilities at the coarse grid, with the
        cells of the background less those of objects.
        """
        ((logit,), (memory,)) = logits, memories
        if logit is None:  # every slot is given
            assert given is not None
            labels = torch.where(given.planes.any(dim=1), 1 + given.planes.to(torch.uint8).argmax(dim=1), 0)
            certain = F.one_hot(labels, 1 + given.planes.shape[1]).movedim(3, 1).float()
            planes = self._planes(self._enter(given.planes, view))
            return Masks(never(certain) * (1 - certain), certain, labels, planes)
        cells = 1 + self.background
        merged = torch.cat([logit[:, :cells].amax(dim=1, keepdim=True), logit[:, cells:]], dim=1)
        soft = logit.float().softmax(dim=1)
        with torch.no_grad():
            whole = self.canvas.leave(self._upsample(logit.float()).softmax(dim=1), view)
            if given is not None:
                whole = _pasted(whole, given)
            best = torch.cat([whole[:, :cells].amax(dim=1, keepdim=True), whole[:, cells:]], dim=1)
            probabilities = best / best.sum(dim=1, keepdim=True)
            labels = probabilities.max(dim=1).indices
        if given is None:
            soft = F.interpolate(soft, scale_factor=0.5, mode="bilinear", align_corners=False)
        else:
            entered = given._replace(planes=self._enter(given.planes, view))
            soft = self._shrunk(_pasted(self._upsample(soft), entered))
        objects = soft[:, cells:]
        if memory.rules.detach_intermediate_masks:
            objects = objects.detach()
        grid = background_cells(self.background, objects.shape[2], objects.shape[3], objects.device)
        planes = torch.cat([grid * (1 - objects.sum(dim=1, keepdim=True)), objects], dim=1)
        return Masks(self.canvas.leave(self._upsample(merged), view), probabilities, labels, planes)

    def planes(self, labels: Tensor, slots: int, view: View) -> Tensor:
        """The cells of the background, then the objects, at the coarse grid: (B, K + slots, h8, w8)."""
        numbers = torch.arange(1, 1 + slots, device=labels.device).view(1, -1, 1, 1)
        return self._planes(self._enter((labels[:, None] == numbers).float(), view))

    def _enter(self, planes: Tensor, view: View) -> Tensor:
        """Given planes (B, N, H, W) at the network's size: resized bilinearly, where more than a half is the object."""
        if view.frame != view.content:
            planes = (F.interpolate(planes, view.content, mode="bilinear", align_corners=False) > 0.5).float()
        return self.canvas.pad(planes, view)

    def _planes(self, objects: Tensor) -> Tensor:
        """The same of (B, N, h, w) planes at the network's size; cells are cut at that size."""
        cells = background_cells(self.background, objects.shape[2], objects.shape[3], objects.device)
        free = 1 - objects.amax(dim=1, keepdim=True)
        return self._shrunk(torch.cat([cells * free, objects], dim=1))

    def _shrunk(self, planes: Tensor) -> Tensor:
        """To the coarse grid: the mean of the four pixels in the middle of each position."""
        return F.interpolate(planes, scale_factor=1 / self.strides[1], mode="bilinear", align_corners=False)

    def _upsample(self, logits: Tensor) -> Tensor:
        return F.interpolate(logits, scale_factor=self.strides[0], mode="bilinear", align_corners=False)

    def memorize(
        self,
        features: HODORFeatures,
        planes: Tensor,
        memory: DescriptorMemory,
        *,
        time: int,
        given: Given | None = None,
        last: bool = False,
    ) -> DescriptorMemory:
        """Describe the objects of a frame anew by its masks; a frame of a time that is remembered replaces it."""
        if last:
            return replace(memory, current=None)
        known = torch.zeros_like(memory.valid)
        for frame in memory.frames:
            known = known | F.pad(frame.described, (0, known.shape[1] - frame.described.shape[1]))
        if given is not None:
            is_seen = leaves_trace(planes[:, self.background :])
            known = torch.where(given.stated, is_seen, known)
            if not torch.is_grad_enabled() and bool(small := int((given.stated & memory.valid & ~is_seen).sum())):
                warnings.warn(
                    f"Of the objects that are given in frame {time}, {small} are too small to be seen at the size the "
                    "network works at, and are left out: try a larger one (--size H W).",
                    stacklevel=2,
                )
        known = known & memory.valid
        described = self.encoder(features.coarse, planes, known)
        frames = [frame for frame in memory.frames if frame.time != time]
        if given is not None:  # of an object that is stated anew nothing old counts
            frames = [replace(frame, described=frame.described & ~_first(given.stated, frame)) for frame in frames]
        frames.append(_remembered(time, described, known))
        window = memory.rules.window
        if window is not None:
            frames = [frame for frame in frames if time - frame.time < window]
        frames.sort(key=lambda frame: frame.time)
        return replace(memory, frames=tuple(frames), current=None)

    def keep(self, memory: DescriptorMemory, slots: Tensor) -> DescriptorMemory:
        """The memory with only the (K,) slots."""
        frames = []
        for frame in memory.frames:
            had = slots[slots < frame.objects.shape[1]]
            frames.append(replace(frame, objects=frame.objects[:, had], described=frame.described[:, had]))
        return replace(memory, valid=memory.valid[:, slots], frames=tuple(frames))


def _remembered(
    time: int, descriptors: Descriptors, described: Tensor, *, has_background: bool = True
) -> RememberedFrame:
    return RememberedFrame(time, descriptors.background, descriptors.objects, described, has_background)


def _first(slots: Tensor, frame: RememberedFrame) -> Tensor:
    """What (B, N) slots say of those that a frame knows."""
    return slots[:, : frame.described.shape[1]]


def _from_detector(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries of a detector's backbone and neck under our names."""
    tables = {"backbone": ("backbone.body", SWIN_FROM_PUBLISHED), "neck": ("pyramid", FPN_FROM_PUBLISHED)}
    ours = {}
    for name, value in state.items():
        part, _, entry = name.partition(".")
        if part in tables:
            outer, table = tables[part]
            module, _, kind = entry.rpartition(".")
            ours[f"{outer}.{table.get(module, module)}.{kind}"] = value
    return ours


def _pasted(probabilities: Tensor, given: Given) -> Tensor:
    """(B, cells + N, h, w) probabilities in which what is stated is where its planes are, and nowhere else."""
    cells = probabilities.shape[1] - given.planes.shape[1]
    inside = given.planes.any(dim=1, keepdim=True)
    is_stated = F.pad(given.stated, (cells, 0))[:, :, None, None]
    return torch.where(inside | is_stated, F.pad(given.planes, (0, 0, 0, 0, cells, 0)), probabilities)
