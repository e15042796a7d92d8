"""`lightning_vos benchmark loader`: frames a second of a train loader."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_vos.errors import ConfigError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence


def benchmark_loader(words: Sequence[str], workers: Sequence[int], batches: int) -> None:
    """Print the frames a second that a train loader gives, by the number of its workers, and where the time goes.

    Args:
        words: A recipe and what changes it, as `fit` takes them; none for the recipe of MAVOS on rendered videos of the
            size of DAVIS, 480 x 854.
        workers: Numbers of workers, one row each.
        batches: How many batches of each are counted.

    Raises:
        UserError: The recipe or its data cannot be read, or cannot be measured.
    """
    from tempfile import TemporaryDirectory

    from rich.console import Console
    from rich.table import Table

    from lightning_vos.benchmarks.loader import measure_rate, measure_stages, synthetic_davis

    if batches < 1 or min(workers) < 0:
        raise ConfigError(f"--batches is {batches}, --workers {min(workers)}; expected at least 1, and at least 0")
    console = Console()
    with TemporaryDirectory() as folder, console.status("preparing the data") as status:
        if words:
            from lightning_vos.commands.recipe_data import DataCLI

            data = DataCLI(words).data
        else:
            data = synthetic_davis(Path(folder), (480, 854), batch_size=2)
        rates = []
        for number in workers:
            status.update(f"{number} workers")
            rates.append(measure_rate(data, number, batches))
        status.update("profiling")
        stages = measure_stages(data, batches)
    table = Table("workers", "frames a second", "relative")
    for rate in rates:
        relative = rate.frames_per_second / rates[0].frames_per_second
        table.add_row(str(rate.workers), f"{rate.frames_per_second:.1f}", f"{relative:.2f}")
    console.print(table)
    shares = ", ".join(f"{stage} {share:.2f}" for stage, share in stages.items())
    console.print(f"Of the time without workers: {shares}", highlight=False, soft_wrap=True)
    console.print(
        f"{rates[0].frames} frames a row, {os.cpu_count()} cores; relative to the first row.", highlight=False
    )


def add_parser(kinds: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb and its options."""
    parser = kinds.add_parser(
        "loader",
        help="frames a second of a train loader",
        description="What a train loader gives; --config and other options are those of fit.",
        allow_abbrev=False,
    )
    parser.add_argument("--workers", type=int, nargs="+", default=(0, 1, 2), metavar="N", help="to compare (0 1 2)")
    parser.add_argument("--batches", type=int, default=16, help="that are counted, of each (16)")
    parser.set_defaults(run=_run)


def _run(words: argparse.Namespace) -> None:
    benchmark_loader(words.recipe_words, words.workers, words.batches)
