"""What the LightningModules of all methods share: start weights, what cannot run, what a test costs."""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol, cast

import lightning.pytorch as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from lightning_vos.errors import ConfigError
from lightning_vos.io.checkpoints import read_checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor, nn


class MethodNetwork(Protocol):
    """What is asked of the network of a method, which is an `nn.Module`."""

    def load_start_weights(self) -> None:
        """Fill the network with what training from scratch starts from, such as pretrained backbones."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """As `nn.Module`."""


class MethodModule(L.LightningModule):
    """What the LightningModules of all methods share: start weights, what cannot run, what a test costs.

    Args:
        network: The network.
        weights: A checkpoint of ours or a published file to start from, for training and for testing.
        weights_may_lack: Beginnings of entry names that `weights` need not have, such as `policy`, or the network.

    Logs `test/FPS`, `test/peak_memory_gb` and `test/parameters`.
    """

    class_entries: ClassVar[tuple[str, ...]] = ()
    """Beginnings of the entry names that belong to the classes of the data, for methods that know classes."""

    def __init__(
        self,
        network: MethodNetwork,
        weights: str | None = None,
        weights_may_lack: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.network = network
        self.weights = weights
        self.weights_may_lack = tuple(weights_may_lack)
        self.frames, self.seconds = 0, 0.0  # that a test has seen, and what the network needed for them

    def on_fit_start(self) -> None:
        """Start from `weights`, else from what the network's recipe starts from.

        Raises:
            CheckpointError: if the weights cannot be had or do not fit.
        """
        if not self._has_weights():
            self.network.load_start_weights()

    def on_validation_start(self) -> None:
        """Load `weights` where a checkpoint is not what is validated; errors as `on_test_start`."""
        if self.trainer.state.fn == TrainerFn.VALIDATING:
            self._need_weights()

    def on_test_start(self) -> None:
        """Load `weights` where a checkpoint is not what is tested.

        Raises:
            CheckpointError: if the weights cannot be had or do not fit.
            ConfigError: if there is nothing to test with.
        """
        self._need_weights()

    def on_predict_start(self) -> None:
        """Load `weights` where a checkpoint is not what predicts; errors as `on_test_start`."""
        self._need_weights()

    def _has_weights(self) -> bool:
        """Whether a checkpoint was restored, or `weights` are there, which are loaded then."""
        if self.trainer.ckpt_path is not None:
            return True
        if self.weights is None:
            return False
        # Published layouts know the networks they belong to, so they can only be asked for here.
        from lightning_vos.published import load_weights

        path = Path(self.weights)
        rank_zero_info(load_weights(cast("nn.Module", self.network), path, self.weights_may_lack))
        if self.class_entries and not any(name.startswith(self.class_entries) for name in self.weights_may_lack):
            self.on_load_checkpoint(read_checkpoint(path))  # the classes count that it was trained with
        return True

    def _need_weights(self) -> None:
        if not self._has_weights():
            raise ConfigError(
                "There are no weights to run with: random ones give random masks.\n"
                "Name a run of this recipe: --ckpt_path best (or last, or a file), or weights: --model.weights FILE."
            )

    def setup(self, stage: str) -> None:
        """Refuse what cannot run.

        Raises:
            ConfigError: if all of the network were to be in half precision.
        """
        if str(self.trainer.precision) in {"16-true", "bf16-true"}:
            raise ConfigError(
                f"trainer.precision is {self.trainer.precision}, but masks need 32 bit.\n"
                "Use 16-mixed or bf16-mixed, which compute in half precision where that is safe."
            )

    def forget_costs(self) -> None:
        """Begin to measure anew."""
        self.frames, self.seconds = 0, 0.0
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def log_costs(self) -> None:
        """Log the speed of all ranks together, the peak of memory and the size of the network."""
        # A collective call: a rank whose videos have one frame each makes it as well.
        counted = self.all_gather(torch.tensor([self.frames, self.seconds], device=self.device))
        frames, seconds = cast("Tensor", counted).reshape(-1, 2).sum(dim=0)
        self.log("test/FPS", frames / seconds)
        self.log("test/peak_memory_gb", self._peak_memory(), reduce_fx="max", sync_dist=True)
        self.log("test/parameters", float(sum(p.numel() for p in self.network.parameters())))

    def _peak_memory(self) -> float:
        """Gigabytes (1e9 bytes): allocated on the GPU since the test began, or resident since the process began."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 1e9
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
