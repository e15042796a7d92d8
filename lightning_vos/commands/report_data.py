"""The data that a run was tested on, opened again by its config."""

from __future__ import annotations

from argparse import ArgumentError
from typing import TYPE_CHECKING, Any

from lightning_vos.errors import DatasetNotFoundError, UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning_vos.figures.run_results import Run


def open_data(run: Run) -> Any:
    """The DataModule of a run; nothing is looked for yet, rendered or downloaded.

    Raises:
        DatasetNotFoundError: The config names no data, or data that cannot be used.
    """
    from jsonargparse import ArgumentParser
    from lightning.pytorch import LightningDataModule

    settings = run.config.get("data")
    if not settings:
        raise DatasetNotFoundError(f"{run.folder / 'config.yaml'} names no data.")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data", required=True)
    try:
        return parser.instantiate_classes(parser.parse_object({"data": settings})).data
    except (ArgumentError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DatasetNotFoundError(f"data of {run.folder / 'config.yaml'} cannot be used: {reason}") from error


def open_all(runs: Sequence[Run]) -> tuple[list[tuple[Run, Any]], list[str]]:
    """The data of runs, each once, and in a sentence why that of others cannot be opened."""
    from lightning_vos.figures.gallery import left_out

    sources: list[tuple[Run, Any]] = []
    notes: list[str] = []
    seen: list[Any] = []
    for run in runs:
        if run.config.get("data") in seen:
            continue
        seen.append(run.config.get("data"))
        try:
            sources.append((run, open_data(run)))
        except UserError as error:
            notes.append(left_out(run, error))
    return sources, notes
