"""The data of a recipe, as training would have it, without its model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jsonargparse import Namespace

from lightning_vos.commands.trainer import CLI, quieten
from lightning_vos.config_files import expand_config_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning.pytorch import LightningDataModule


class DataCLI(CLI):
    """Reads and checks a recipe as `fit` does, and builds its data alone: no model, no trainer, nothing is run.

    Args:
        words: The words after `fit`: `--config NAME`, `--data.root DIR` and so on.

    Attributes:
        data: The DataModule, ready to train.

    Raises:
        UserError: A config is missing or wrong, or its data is not there.
    """

    data: LightningDataModule

    def __init__(self, words: Sequence[str]) -> None:
        quieten()
        super().__init__("fit", expand_config_options(["fit", *words]))
        self.data.prepare_data()
        self.data.setup("fit")

    def before_instantiate_classes(self) -> None:
        """Nothing is logged."""

    def _instantiate(self) -> None:
        settings = Namespace(data=self.config[self.verb].data)  # type: ignore[no-untyped-call]
        self.data = self._subcommand_parsers[self.verb].instantiate_classes(settings).data

    def after_instantiate_classes(self) -> None:
        """Nothing is resumed."""

    def _run_subcommand(self, subcommand: str) -> None:
        return
