"""`lightning_vos benchmark frame`: what one frame costs, and its parts."""

from __future__ import annotations

import os
from contextlib import closing
from typing import TYPE_CHECKING, cast

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

    from lightning_vos.benchmarks.frame import Cost
    from lightning_vos.benchmarks.workload import Setting


def benchmark_frame(recipes: Sequence[str], setting: Setting, repeats: int, *, is_profiled: bool) -> None:
    """Print what one frame of each recipe costs, relative to the first recipe's frame that reads one memory frame.

    Args:
        recipes: As `build_module`, one or more.
        setting: What they run on.
        repeats: Runs that a median is taken over.
        is_profiled: Whether to print the operators that a frame spends most time in.

    Raises:
        UserError: if a recipe cannot be built or measured.
    """
    from rich.console import Console
    from rich.table import Column, Table

    from lightning_vos.benchmarks.process import StoppedError, in_fresh_process
    from lightning_vos.benchmarks.workload import MIB

    if repeats < 1:
        raise ConfigError(f"--repeats {repeats} measures nothing: expected a number of at least 1.")
    labels = labels_of(recipes)
    console = Console()
    check(recipes, console, vos_module)
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else the profiler of the fresh process tells of its own state
    table = Table(Column("", overflow="fold"), "relative", f"{clock_name(setting)} ms", "bank MiB", "memory MiB")
    profiles: dict[str, str] = {}
    unit = None
    for recipe, label in zip(recipes, labels, strict=True):
        table.add_row(label, style="bold")
        with (
            console.status(label) as status,
            closing(in_fresh_process(_frame_costs, recipe, setting, repeats, is_profiled)) as process,
        ):
            try:
                for cost in cast("Iterator[Cost | str]", process):
                    if isinstance(cost, str):
                        profiles[label] = cost
                        continue
                    unit = unit or cost.seconds
                    status.update(f"{label}: {cost.what.strip()}")
                    sizes = (
                        "" if size is None else f"{size / MIB:.1f}" for size in (cost.bank_bytes, cost.memory_bytes)
                    )
                    table.add_row(cost.what, f"{cost.seconds / unit:.2f}", f"{1e3 * cost.seconds:.1f}", *sizes)
            except StoppedError as stop:
                table.add_row(str(stop))
        table.add_section()
    console.print(table)
    console.print(
        "relative: to the first frame. memory: the peak above the loaded network; of local attention, its own tensors.",
        highlight=False,
    )
    for label, text in profiles.items():
        console.print(f"\n{label}: a frame that does not update its bank")
        console.print(text, soft_wrap=True, markup=False, highlight=False)


def _frame_costs(recipe: str, setting: Setting, repeats: int, is_profiled: bool) -> Iterator[Cost | str]:
    from lightning_vos.benchmarks.frame import measure_frame

    return measure_frame(vos_module(recipe).network, setting, repeats, is_profiled=is_profiled)


def add_parser(kinds: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb and its options."""
    parser = kinds.add_parser("frame", help="what one frame costs, and its parts", allow_abbrev=False)
    add_recipes(parser)
    add_video_options(parser)
    add_setting_options(parser)
    parser.add_argument("--repeats", type=int, default=5, help="runs that a median is taken over (5)")
    parser.add_argument("--profile", action="store_true", help="print the operators of a frame that take most time")
    parser.set_defaults(run=_run)


def _run(words: argparse.Namespace) -> None:
    benchmark_frame(words.recipes, setting_of(words), words.repeats, is_profiled=words.profile)
