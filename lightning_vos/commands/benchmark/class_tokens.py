"""`lightning_vos benchmark class-tokens`: what attention maps and tokens of many classes cost token masking."""

from __future__ import annotations

import csv
import os
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_vos.commands.benchmark.recipes import (
    add_setting_options,
    build_module,
    clock_name,
    device_and_threads,
)
from lightning_vos.errors import ConfigError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping, Sequence

    from rich.table import Table

    from lightning_vos.benchmarks.class_tokens import Case, TokenCost
    from lightning_vos.benchmarks.workload import Setting
    from lightning_vos.models.token_masking.module import TokenMasking


def benchmark_class_tokens(
    recipe: str, setting: Setting, classes: Sequence[int], batch: int, repeats: int, output: Path | None
) -> None:
    """Print what attention maps of more or fewer layers cost, and what tokens for more or fewer classes cost.

    Args:
        recipe: As `build_module`, of token masking.
        setting: What it runs on.
        classes: Numbers of classes, each measured with both classifiers; the first is what others are relative to.
        batch: Images of a step.
        repeats: Runs that a median is taken over.
        output: A CSV to write, too.

    Raises:
        UserError: if the recipe cannot be built, or nothing can be measured.
    """
    from rich.console import Console

    from lightning_vos.benchmarks.class_tokens import class_cases, map_cases
    from lightning_vos.benchmarks.process import StoppedError, in_fresh_process

    if min(*classes, batch, repeats) < 1:
        given = f"--classes {' '.join(map(str, classes))} --batch {batch} --repeats {repeats}"
        raise ConfigError(f"{given} measures nothing: expected numbers of at least 1.")
    console = Console()
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else the profiler of the fresh process tells of its own state
    of_maps, of_classes = map_cases(_token_masking(recipe)), class_cases(classes)
    costs: dict[Case, TokenCost] = {}
    stopped: dict[Case, str] = {}
    with console.status("measuring") as status:
        for case in (*of_maps, *of_classes):
            status.update(case.what)
            with closing(in_fresh_process(_token_costs, recipe, case, setting, batch, repeats)) as process:
                try:
                    costs[case] = next(process)
                except StoppedError as stop:
                    stopped[case] = str(stop)
    if not costs:
        raise ConfigError("Nothing was measured: out of memory. A smaller --size or --batch needs less.")
    clock = clock_name(setting)
    console.print(_table(f"{of_maps[0].classes} classes", of_maps, costs, stopped, clock, {}))
    console.print(
        "Maps are computed beside the fused attention, class tokens to all tokens. no fused attention: every layer has "
        "the whole map of every head, as in the published code.",
        highlight=False,
    )
    units = {case: next(other for other in of_classes if other.classifier == case.classifier) for case in of_classes}
    console.print(_table("classes", of_classes, costs, stopped, clock, units))
    console.print(
        f"A batch of {batch}, {setting.size[0]} x {setting.size[1]} pixels; second numbers are ratios, to the first row"
        f"{'' if len(classes) == 1 else f', and to {classes[0]} classes with the same classifier'}. forward: without "
        "gradients. step: forward, backward and optimizer. MiB: peak of tensors above weights and the optimizer's.",
        highlight=False,
    )
    if output is not None:
        _write(output, costs)
        console.print(f"The numbers are in {output}", highlight=False, soft_wrap=True)


def _table(
    title: str,
    cases: Sequence[Case],
    costs: Mapping[Case, TokenCost],
    stopped: Mapping[Case, str],
    clock: str,
    units: Mapping[Case, Case],
) -> Table:
    """Each number with its ratio to that of another case, by default the first."""
    from rich.table import Column, Table

    from lightning_vos.benchmarks.workload import MIB

    titles = ("million\nparameters", f"forward\n{clock} ms", "\nMiB", f"step\n{clock} ms", "\nMiB")
    table = Table(Column(title, overflow="fold"), *(Column(name, justify="right", no_wrap=True) for name in titles))
    scales, digits = (1e-6, 1e3, 1 / MIB, 1e3, 1 / MIB), (1, 0, 0, 0, 0)
    for case in cases:
        if case in stopped:
            table.add_row(f"{case.what}: {stopped[case]}")
            continue
        unit = costs.get(units.get(case, cases[0]))
        cells = []
        for number, value in enumerate(costs[case]):
            ratio = "" if unit is None else f" {value / unit[number]:.2f}"
            cells.append(f"{scales[number] * value:.{digits[number]}f}{ratio}")
        table.add_row(case.what, *cells)
    return table


def _write(output: Path, costs: Mapping[Case, TokenCost]) -> None:
    from lightning_vos.benchmarks.class_tokens import Case, TokenCost
    from lightning_vos.io.writing import written_beside

    with written_beside(output) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow([*Case._fields, *TokenCost._fields])
        for case, cost in costs.items():
            table.writerow([*case._replace(layers=" ".join(map(str, case.layers))), *cost])  # type: ignore[arg-type]


def _token_costs(recipe: str, case: Case, setting: Setting, batch: int, repeats: int) -> Iterator[TokenCost]:
    from lightning_vos.benchmarks.class_tokens import measure_class_tokens

    return measure_class_tokens(_token_masking(recipe), case, setting, batch, repeats)


def _token_masking(recipe: str) -> TokenMasking:
    from lightning_vos.models.token_masking.module import TokenMasking

    module = build_module(recipe)
    if not isinstance(module, TokenMasking):
        raise ConfigError(
            f"{recipe} has no class tokens: it is of {type(module).__qualname__}.\n"
            "  expected a recipe such as token_masking_voc"
        )
    return module


def add_parser(kinds: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb and its options."""
    parser = kinds.add_parser(
        "class-tokens", help="what attention maps and many classes cost token masking", allow_abbrev=False
    )
    parser.add_argument(
        "recipe",
        nargs="?",
        default="token_masking_voc",
        metavar="RECIPE",
        help="a config of token masking, or several joined by + (token_masking_voc)",
    )
    parser.add_argument("--size", type=int, nargs=2, default=(448, 448), metavar=("H", "W"), help="of the images")
    parser.add_argument("--classes", type=int, nargs="+", default=(20, 80, 150), metavar="K", help="(20 80 150)")
    parser.add_argument("--batch", type=int, default=1, help="images of a step (1)")
    parser.add_argument("--repeats", type=int, default=3, help="runs that a median is taken over (3)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="a CSV to write, too")
    add_setting_options(parser)
    parser.set_defaults(run=_run)


def _run(words: argparse.Namespace) -> None:
    from lightning_vos.benchmarks.workload import Setting

    device, threads = device_and_threads(words)
    setting = Setting(tuple(words.size), 1, device, threads, words.precision)
    benchmark_class_tokens(words.recipe, setting, words.classes, words.batch, words.repeats, words.output)
