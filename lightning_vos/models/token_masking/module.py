"""Token masking as a LightningModule: training on image-level labels, label maps of whole images.

Shapes: B images, K classes of the network, H W pixels of an image on disk.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch.cli import OptimizerCallable
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from lightning_vos.callbacks.label_maps import ClassMapWriter
from lightning_vos.errors import ConfigError
from lightning_vos.metrics.label_maps import ImageLabels
from lightning_vos.models.token_masking.criterion import Criterion
from lightning_vos.models.token_masking.inference import MapSettings, class_maps
from lightning_vos.models.token_masking.label_map_module import LabelMapModule
from lightning_vos.models.token_masking.masking import MaskingSchedule, draw_masked
from lightning_vos.models.token_masking.network import TokenMaskingNetwork
from lightning_vos.models.token_masking.pseudo_masks import (
    PixelValues,
    PseudoMaskSettings,
    class_maps_to_keep,
    label_map,
    pixel_values,
)
from lightning_vos.optim import CosineSchedule, PolynomialSchedule, StepSchedule, training_steps
from lightning_vos.structures import LabelledImages, ScoredImage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lightning.pytorch.callbacks import Callback
    from lightning.pytorch.utilities.types import OptimizerLRScheduler

_MASKING, _CRITERION, _MAPS, _PSEUDO_MASKS = MaskingSchedule(), Criterion(), MapSettings(), PseudoMaskSettings()
_SCHEDULE = CosineSchedule(warmup=5 / 60)
_UNDECAYED = ("token", "position", "register")
_BACKGROUND = "background"
_MASK_DRAWS = 1  # tells the draws of masks from all others of a step


class TokenMasking(LabelMapModule):
    """Trains a `TokenMaskingNetwork` on image-level labels, and makes label maps of its attention.

    The paper says neither optimizer nor learning rates: the defaults are MCTformer's for batches of 64, which has a
    token for every class, too. At such a rate a gate moves by less than one in a whole training, and none would ever
    close: gates have a rate of their own.

    Args:
        network: The network.
        masking: How probable it is that the token of an absent class is masked in training.
        criterion: The loss.
        optimizer: Called with groups of parameters; biases, norms, tokens, positions and gates have no weight decay.
        schedule: Of the learning rate.
        gate_factor: What the learning rate is multiplied with for gates.
        maps: Where label maps come from. Validation looks at an image once, at its own size.
        pseudo_masks: How maps become label maps.
        weights: As `LabelMapModule`.
        weights_may_lack: As `LabelMapModule`, such as `classifier`, `vit.class_tokens` and `vit.positions` for weights
            that know other classes.

    Raises:
        ValueError: if the loss is of a patch head that the network lacks, or `gate_factor` is below 0.

    Logs `train/loss` and its parts, `train/open_heads`, the share of attention heads that are open, and the number of
    them in each layer; `val/mAP` and `val/F1` of the labels, `val/mIoU` of the label maps, in percent, and the same
    under `test/` with what a test costs, and `test/open_heads`.
    """

    class_entries = ("classifier", "vit.class_tokens")

    def __init__(
        self,
        network: TokenMaskingNetwork,
        masking: MaskingSchedule = _MASKING,
        criterion: Criterion = _CRITERION,
        optimizer: OptimizerCallable = lambda parameters: AdamW(parameters, lr=6.25e-5, weight_decay=0.05),
        schedule: PolynomialSchedule | CosineSchedule | StepSchedule = _SCHEDULE,
        gate_factor: float = 100.0,
        maps: MapSettings = _MAPS,
        pseudo_masks: PseudoMaskSettings = _PSEUDO_MASKS,
        weights: str | None = None,
        weights_may_lack: Sequence[str] = (),
    ) -> None:
        super().__init__(network, weights, weights_may_lack)
        if gate_factor < 0:
            raise ValueError(f"TokenMasking: gate_factor={gate_factor}, expected 0 or more")
        if criterion.patch_weight > 0 and network.patch_head is None:
            raise ValueError("TokenMasking: criterion.patch_weight is above 0, but network.patch_head is false")
        self.network: TokenMaskingNetwork
        self.masking, self.criterion = masking, criterion
        self.optimizer, self.schedule, self.gate_factor = optimizer, schedule, gate_factor
        self.maps, self.pseudo_masks = maps, pseudo_masks
        if network.patch_head is not None:
            network.patch_head.requires_grad_(criterion.patch_weight > 0)
        self._labels = ImageLabels(network.classes - self._has_background_token)
        self._known_labels: dict[str, Tensor] = {}  # of images to predict, where label maps depend on them

    @property
    def _has_background_token(self) -> bool:
        return self.pseudo_masks.background == "token"

    def setup(self, stage: str) -> None:
        """Refuse what cannot run.

        Raises:
            ConfigError: The data has masks to train on; or as `LabelMapModule`.
        """
        super().setup(stage)
        if stage == "fit" and getattr(self._data, "train_masks", None) is not None:
            raise ConfigError(
                f"data.train_masks is {self._data.train_masks}, but TokenMasking learns from labels of images alone.\n"
                "Leave it out; or train SegmentationFromMasks, the second stage, on these masks: with\n"
                "configs/segmentation_voc.yaml, segmentation_coco.yaml or segmentation_dfc2020.yaml."
            )

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Three groups: with weight decay, without, and gates.

        Raises:
            ConfigError: if the training has no end, or the learning rate is not above 0.
        """
        groups: dict[str, list[nn.Parameter]] = {"decayed": [], "plain": [], "gates": []}
        for name, parameter in self.network.named_parameters():
            if parameter.requires_grad:
                plain = parameter.dim() < 2 or any(word in name for word in _UNDECAYED)
                groups["gates" if name.startswith("gates.") else "plain" if plain else "decayed"].append(parameter)
        kept = [
            {"params": found, "name": name} | ({} if name == "decayed" else {"weight_decay": 0.0})
            for name, found in groups.items()
            if found
        ]
        optimizer = self.optimizer(kept)
        steps = training_steps(self.trainer)
        factors = [self._factor(group["name"], group["lr"], steps) for group in optimizer.param_groups]
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, factors), "interval": "step"}}

    def _factor(self, group: str, peak: float, steps: int) -> Callable[[int], float]:
        if peak <= 0:
            raise ConfigError(f"The learning rate is {peak}, expected one above 0: set --model.optimizer.lr.")
        of_group = self.gate_factor if group == "gates" else 1.0
        return lambda step: of_group * self.schedule.rate(step, steps, peak) / peak

    def training_step(self, batch: LabelledImages, batch_idx: int) -> Tensor:
        """Loss of a batch of images."""
        network = self.network
        labels = nn.functional.pad(batch.labels, (1, 0), value=1.0) if self._has_background_token else batch.labels
        masked = draw_masked(labels, self.masking.at(self._epoch()), self._generator(batch_idx))
        predictions = network(batch.images, masked, with_maps=self.criterion.diversity > 0)
        loss = self.criterion(predictions, labels, None if network.gates is None else network.gates.penalty())
        self.log("train/loss", loss.total, prog_bar=True)
        for name, part in loss.parts.items():
            self.log(f"train/{name}", part)
        if network.gates is not None:
            is_open = network.gates.open().float()
            self.log("train/open_heads", is_open.mean())
            for layer, count in enumerate(is_open.sum(dim=1), start=1):
                self.log(f"train/open_heads_{layer:02}", count)
        return loss.total

    def _generator(self, batch_idx: int) -> torch.Generator:
        """The source of the masks of a batch: a function of the run's seed, the step and the rank.

        So a resumed run draws what an uninterrupted one would, with no state to keep for each rank.
        """
        part = batch_idx % self.trainer.accumulate_grad_batches
        run_seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))
        entropy = [run_seed, self.global_step, part, self.global_rank, _MASK_DRAWS]
        seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        return torch.Generator(self.device).manual_seed(seed)

    def _epoch(self) -> int:
        """How often all images were seen; training loaders are endless."""
        if not self.masking.steps:
            return 0
        loader: Any = self.trainer.train_dataloader
        return int(self.global_step * self._data.items_a_step // len(loader.dataset.images.names))

    def on_predict_epoch_start(self) -> None:
        """Find the labels of the images, if their label maps depend on them."""
        super().on_predict_epoch_start()
        if self.pseudo_masks.labels == "image":
            rows = self._data.label_table(self._data.predict_split).rows
            self._known_labels = {name: torch.from_numpy(row).float() for name, row in rows.items()}

    def _begin(self) -> None:
        super()._begin()
        self._labels.reset()

    def evaluate(self, sample: ScoredImage) -> NDArray[np.uint8]:
        """Merge the class maps of an image.

        Raises:
            ConfigError: They are to be merged by labels that are not public.
        """
        image, truth = sample.image, sample.truth
        known = self._known_labels.get(image.name) if truth is None else truth.labels
        if known is None and self.pseudo_masks.labels == "image":
            raise ConfigError(
                "Label maps are to be merged by the image-level truth (model.pseudo_masks.labels=image), but the truth "
                f"of {image.name} is not public.\nSet --model.pseudo_masks.labels=predicted, or name another split."
            )
        began = time.perf_counter()
        maps, probabilities = class_maps(self.network, image.pixels, self._map_settings)
        merging: dict[str, Any] = {"labels": self._with_background(known), "image": image.pixels}
        labels = label_map(maps, probabilities, image.size, self._values, self.pseudo_masks, **merging)
        self.score(sample, labels, time.perf_counter() - began)
        if truth is not None:
            self._labels.update(sample.number, probabilities[-len(truth.labels) :], truth.labels)
        self._keep_maps(sample, maps, probabilities, merging)
        return labels

    @property
    def _map_settings(self) -> MapSettings:
        """How images are looked at: once in a validation."""
        return replace(self.maps, scales=(1.0,), flip=False) if self._is_quick else self.maps

    def _keep_maps(self, sample: ScoredImage, maps: Tensor, probabilities: Tensor, merging: dict[str, Any]) -> None:
        if self._is_quick:
            return
        callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        for callback in callbacks:
            if isinstance(callback, ClassMapWriter):
                kept = class_maps_to_keep(maps, probabilities, self._values, self.pseudo_masks, **merging)
                callback.on_class_maps(self.trainer, sample, *kept)

    def _with_background(self, labels: Tensor | None) -> Tensor | None:
        if labels is None or not self._has_background_token:
            return labels
        return nn.functional.pad(labels, (1, 0), value=1.0)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes of the network, as the data calls them; the first is background where it has a token."""
        names: tuple[str, ...] = tuple(self._data.class_names)
        return (_BACKGROUND, *names) if self._has_background_token else names

    @property
    def _values(self) -> PixelValues:
        return pixel_values(self._class_set, self.class_names)

    def measured(self, summary: Mapping[str, float]) -> dict[str, float]:
        """How well labels are known, and label maps."""
        known = self._labels.compute()
        return {"mAP": known.mean_average_precision, "F1": known.f1, "mIoU": summary["mIoU"]}

    def on_test_epoch_end(self) -> None:
        """Log the share of open heads, too."""
        super().on_test_epoch_end()
        if self.network.gates is not None:
            self.log("test/open_heads", self.network.gates.open().float().mean())

    def describe(self) -> str:
        """Where label maps come from."""
        return f"{self._map_settings.describe()}; {self.pseudo_masks.describe()}"

    def made_with(self) -> dict[str, Any]:
        """What label maps depend on."""
        return super().made_with() | {"maps": asdict(self.maps), "pseudo_masks": asdict(self.pseudo_masks)}
