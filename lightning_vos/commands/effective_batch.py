"""The items of an optimizer step, whatever they are computed on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning.pytorch.utilities import rank_zero_info

from lightning_vos.errors import ConfigError

if TYPE_CHECKING:
    from lightning.pytorch import LightningDataModule, Trainer


def fill_steps(trainer: Trainer, data: LightningDataModule, size: int) -> None:
    """Make every optimizer step see `size` items, by batches that all devices share and accumulate.

    `data.batch_size` is what a device takes at once; it becomes less where a device's share of a step is less, or no
    multiple of it. Validations stay as many steps apart as `trainer.val_check_interval` says.

    Args:
        trainer: Its gradients are accumulated accordingly; before it fits.
        data: What it is to be trained on.
        size: Items of a step.

    Raises:
        ConfigError: The devices cannot share the items evenly, a batch is larger than a step, or
            `trainer.accumulate_grad_batches` says something else.
    """
    devices = trainer.num_devices * trainer.num_nodes
    at_once = getattr(data, "batch_size", None)
    if at_once is None:
        raise ConfigError(
            f"effective_batch_size is {size}, but {type(data).__qualname__} has no batch_size to fill a step with.\n"
            "Set --effective_batch_size null, and --trainer.accumulate_grad_batches instead."
        )
    if at_once > size:
        raise ConfigError(
            f"data.batch_size is {at_once}, more than the {size} items of a step (effective_batch_size).\n"
            f"Set --effective_batch_size {at_once * devices} for larger steps, or --data.batch_size to at most {size}."
        )
    if size % devices:
        raise ConfigError(
            f"A step of {size} items (effective_batch_size) cannot be shared evenly by {devices} devices.\n"
            f"Set --effective_batch_size to a multiple of {devices}, or --trainer.devices to a divisor of {size}."
        )
    share = size // devices
    batch = max(count for count in range(1, min(at_once, share) + 1) if share % count == 0)
    batches = share // batch
    if trainer.accumulate_grad_batches not in (1, batches):
        raise ConfigError(
            f"trainer.accumulate_grad_batches is {trainer.accumulate_grad_batches}, but a step of {size} items "
            f"(effective_batch_size) takes {batches} batches of {batch} on {devices} devices.\n"
            "Leave trainer.accumulate_grad_batches out, or set --effective_batch_size null."
        )
    data.batch_size = batch  # type: ignore[attr-defined]
    trainer.accumulate_grad_batches = batches
    if isinstance(trainer.val_check_interval, int):
        trainer.val_check_interval *= batches  # Lightning counts batches
    rank_zero_info(f"A step: {size} items, {batch} at once on each of {devices} devices, {batches} times.")
