"""`lightning_vos benchmark training`: what a training step costs."""

from __future__ import annotations

from contextlib import closing
from itertools import product
from typing import TYPE_CHECKING

from lightning_vos.commands.benchmark.recipes import (
    add_recipes,
    add_setting_options,
    add_video_options,
    check,
    clock_name,
    labels_of,
    setting_of,
    vos_module,
)
from lightning_vos.errors import ConfigError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from lightning_vos.benchmarks.training import StepCost
    from lightning_vos.benchmarks.workload import Setting


def benchmark_training(
    recipes: Sequence[str], setting: Setting, lengths: Sequence[int], batch: int, repeats: int
) -> None:
    """Print what a training step of each recipe costs, with and without activation checkpointing.

    Args:
        recipes: As `build_module`, one or more.
        setting: What they are trained on.
        lengths: Frames of a clip, each measured for itself.
        batch: Clips of a batch.
        repeats: Steps that a median is taken over, after one that is not counted.

    Raises:
        UserError: if a recipe cannot be built, or nothing can be measured.
    """
    from rich.console import Console
    from rich.table import Column, Table

    from lightning_vos.benchmarks.process import StoppedError, in_fresh_process
    from lightning_vos.benchmarks.workload import MIB

    if min(*lengths, batch, repeats) < 1:
        given = f"--lengths {' '.join(map(str, lengths))} --batch {batch} --repeats {repeats}"
        raise ConfigError(f"{given} measures nothing: expected numbers of at least 1.")
    labels = labels_of(recipes)
    console = Console()
    check(recipes, console, vos_module)
    table = Table(Column("", overflow="fold"), "time", f"{clock_name(setting)} ms", "memory", "peak MiB")
    unit: StepCost | None = None
    for recipe, label in zip(recipes, labels, strict=True):
        table.add_row(label, style="bold")
        for length, is_checkpointed in product(lengths, (False, True)):
            what = f"clips of {length}{', checkpointed' if is_checkpointed else ''}"
            arguments = (recipe, is_checkpointed, setting, length, batch, repeats)
            with console.status(f"{label}: {what}"), closing(in_fresh_process(_step_costs, *arguments)) as process:
                try:
                    cost: StepCost = next(process)
                except (StoppedError, ConfigError) as stop:
                    table.add_row(f"{what}: {' '.join(str(stop).split())}")
                    continue
            unit = unit or cost
            ratios = (f"{ours / first:.2f}" for ours, first in zip(cost, unit, strict=True))
            figures = (f"{1e3 * cost.seconds:.0f}", f"{cost.memory_bytes / MIB:.0f}")
            table.add_row(what, *(cell for pair in zip(ratios, figures, strict=True) for cell in pair))
        table.add_section()
    console.print(table)
    if unit is None:
        raise ConfigError("Nothing was measured: the table says why.")
    console.print(
        f"Forward, backward and optimizer of a batch of {batch}; relative to the first row measured. peak: above "
        "the module before its first step. checkpointed: --model.activation_checkpointing=true.",
        highlight=False,
    )


def _step_costs(
    recipe: str, is_checkpointed: bool, setting: Setting, length: int, batch: int, repeats: int
) -> Iterator[StepCost]:
    from lightning_vos.benchmarks.training import measure_training

    module = vos_module(recipe, is_checkpointed=is_checkpointed)
    return measure_training(module, setting, length, batch, repeats)


def add_parser(kinds: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb and its options."""
    parser = kinds.add_parser("training", help="what a training step costs", allow_abbrev=False)
    add_recipes(parser)
    add_video_options(parser)
    add_setting_options(parser)
    parser.add_argument("--lengths", type=int, nargs="+", default=(8,), metavar="T", help="frames of a clip (8)")
    parser.add_argument("--batch", type=int, default=1, help="clips of a step (1)")
    parser.add_argument("--repeats", type=int, default=3, help="steps that a median is taken over (3)")
    parser.set_defaults(run=_run)


def _run(words: argparse.Namespace) -> None:
    benchmark_training(words.recipes, setting_of(words), words.lengths, words.batch, words.repeats)
