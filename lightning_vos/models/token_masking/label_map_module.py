"""What the two stages of weakly supervised segmentation share: images become label maps, which are scored.

Shapes: H W pixels of an image on disk.
"""

from __future__ import annotations

import math
import warnings
import zlib
from abc import ABC, abstractmethod
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch.trainer.states import TrainerFn
from numpy.typing import NDArray

from lightning_vos.callbacks.label_maps import LabelMapScoreWriter, LabelMapWriter, is_there, tell_label_map
from lightning_vos.errors import ConfigError
from lightning_vos.evaluation.scores import Scores
from lightning_vos.evaluation.semantic import ClassSet, measures
from lightning_vos.metrics.label_maps import LabelMapConfusion
from lightning_vos.module import MethodModule
from lightning_vos.structures import ScoredImage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lightning.pytorch.callbacks import Callback

    from lightning_vos.models.token_masking.network import TokenMaskingNetwork
    from lightning_vos.models.token_masking.segmentation_networks import SegmentationNetwork

_CLASSES = "classes"  # key of a checkpoint: names
_SHOWN, _MOST_SHOWN = 4, 12  # names in a message; where one of them may be wrong


class LabelMapModule(MethodModule, ABC):
    """Validates, tests and predicts whole images with a network; a subclass adds how it is trained.

    Args:
        network: The network; its outputs are the classes of the data, in their order.
        weights: As `MethodModule`; what it notes of its classes must be those of the data.
        weights_may_lack: As `MethodModule`.

    Attributes:
        scores: Of the last evaluation, if there were any masks.
    """

    def __init__(
        self,
        network: TokenMaskingNetwork | SegmentationNetwork,
        weights: str | None = None,
        weights_may_lack: Sequence[str] = (),
    ) -> None:
        super().__init__(network, weights, weights_may_lack)
        self.network: TokenMaskingNetwork | SegmentationNetwork
        self.scores: Scores | None = None
        self._confusion = LabelMapConfusion()
        self._trained_on: Sequence[str] | None = None

    @property
    @abstractmethod
    def class_names(self) -> Sequence[str]:
        """The classes of the network, as the data calls them."""

    @abstractmethod
    def evaluate(self, sample: ScoredImage) -> NDArray[np.uint8]:
        """The (H, W) label map of an image, in the values of the dataset, after `score` has counted it."""

    @abstractmethod
    def measured(self, summary: Mapping[str, float]) -> dict[str, float]:
        """What is logged, by name, of all images of all ranks; `summary` is what `measures` says of their masks."""

    @abstractmethod
    def describe(self) -> str:
        """One clause: how label maps are made."""

    def made_with(self) -> dict[str, Any]:
        """What label maps depend on: weights, by a checksum, and settings, which a subclass adds."""
        checksum = 0
        for value in self.network.state_dict().values():
            checksum = zlib.crc32(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy(), checksum)
        return {"protocol": self.protocol(), "weights": f"{checksum:08x}", "classes": list(self.class_names)}

    def protocol(self) -> str:
        """One sentence: what label maps and their scores are of."""
        predicting = self.trainer.state.fn == TrainerFn.PREDICTING
        split = "val" if self._is_quick else self._data.predict_split if predicting else "test"
        return f"{self._data.describe(split)[0]}: {self.describe()}"

    @property
    def _is_quick(self) -> bool:
        """Whether images are looked at once, as in a validation."""
        return self.trainer.state.fn in (TrainerFn.FITTING, TrainerFn.VALIDATING)

    @property
    def _data(self) -> Any:
        return self.trainer.datamodule  # type: ignore[attr-defined]

    @property
    def _class_set(self) -> ClassSet:
        class_set: ClassSet = self._data.class_set
        return class_set

    def configure_callbacks(self) -> Sequence[Callback]:
        """Label maps and scores of `test` and `predict` are always written."""
        listed: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        own = [] if any(isinstance(callback, LabelMapWriter) for callback in listed) else [LabelMapWriter()]
        return [*own, LabelMapScoreWriter()]

    def setup(self, stage: str) -> None:
        """Refuse what cannot run.

        Raises:
            ConfigError: The data has another number of classes than the network; or as `MethodModule`.
        """
        super().setup(stage)
        names = self.class_names
        if len(names) != self.network.classes:
            raise ConfigError(
                f"The data has {len(names)} classes: {_some(names, _MOST_SHOWN)}\n"
                f"  the network has {self.network.classes}.\n"
                f"Set --model.network.classes={len(names)}. In a CSV of labels a misspelt one is a class of its own: "
                "mend it there."
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note the classes: the same output is another class in another dataset."""
        checkpoint[_CLASSES] = list(self.class_names)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember which classes the weights know."""
        self._trained_on = checkpoint.get(_CLASSES)

    def _has_weights(self) -> bool:
        """As `MethodModule`; before anything is written, refuse weights that know other classes than the data has."""
        has_weights = super()._has_weights()
        pairs = zip_longest(self._trained_on or (), self.class_names)
        first = next((number for number, (known, name) in enumerate(pairs) if known != name), None)
        if self._trained_on is not None and first is not None:
            raise ConfigError(
                f"The checkpoint knows other classes than the data has: {_some(self._trained_on[first:])}, "
                f"not {_some(self.class_names[first:])} (from class {first + 1} on).\n"
                "Use it on data with the classes of its training; to train it on these: --model.weights FILE "
                f"--model.weights_may_lack '[{', '.join(self.class_entries)}]'."
            )
        return has_weights

    def on_validation_epoch_start(self) -> None:
        """Forget the last evaluation."""
        self._begin()

    def on_test_epoch_start(self) -> None:
        """Forget the last evaluation and its costs."""
        self._begin()

    def on_predict_epoch_start(self) -> None:
        """Forget the last evaluation."""
        self._begin()

    def _begin(self) -> None:
        self._confusion.reset()
        self.scores = None
        self.forget_costs()

    def validation_step(self, batch: ScoredImage, batch_idx: int) -> None:
        """Score one image."""
        self.evaluate(batch)

    def test_step(self, batch: ScoredImage, batch_idx: int) -> None:
        """Score one image and hand its label map to the callbacks."""
        tell_label_map(self.trainer, batch, self.evaluate(batch))

    def predict_step(self, batch: ScoredImage, batch_idx: int) -> None:
        """Hand the label map of an image to the callbacks, unless they have it already."""
        if not is_there(self.trainer, batch.image.name):
            tell_label_map(self.trainer, batch, self.evaluate(batch))

    def score(self, sample: ScoredImage, labels: NDArray[np.uint8], seconds: float) -> None:
        """Count an image and, where its mask is public, its pixels.

        Args:
            sample: The image.
            labels: Its (H, W) label map.
            seconds: What that took, until it was on the host, so that nothing was still being computed.
        """
        self.frames += 1
        self.seconds += seconds
        if sample.truth is not None and sample.truth.mask is not None:
            self._confusion.update(sample.number, sample.truth.mask.cpu().numpy(), labels)

    def on_validation_epoch_end(self) -> None:
        """Log the scores of all images of all ranks."""
        self._end("val")

    def on_test_epoch_end(self) -> None:
        """Log the scores of all images of all ranks, speed, memory and size."""
        self._end("test")
        self.log_costs()

    def _end(self, stage: str) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*was called before the ``update`` method")  # nothing has truth
            counts = self._confusion.compute()  # a collective call, as `measured` may make: every rank makes them
            summary, categories = measures(counts, self._class_set, "counted")
            logged = self.measured(summary)
        if counts.any():
            self.scores = Scores("semantic", self.protocol(), summary | logged, categories=categories)
        for name, value in logged.items():
            if stage == "val" or not math.isnan(value):  # a best checkpoint is chosen by a validation
                self.log(f"{stage}/{name}", value, prog_bar=name == "mIoU")


def _some(names: Sequence[str], most: int = _SHOWN) -> str:
    return (", ".join(names[:most]) or "no more") + (", ..." if len(names) > most else "")
