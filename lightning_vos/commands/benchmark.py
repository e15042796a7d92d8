"""`lightning_vos benchmark`: what recipes cost over a video, in a frame, in training; attention, scoring, loading."""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
from contextlib import closing
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lightning_vos.commands.inputs import add_device_option, choose_device
from lightning_vos.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rich.console import Console

    from lightning_vos.benchmarks.attention import AttentionCost, Rates
    from lightning_vos.benchmarks.frame import Cost
    from lightning_vos.benchmarks.memory import FrameRow, Summary
    from lightning_vos.benchmarks.training import StepCost
    from lightning_vos.benchmarks.workload import Setting
    from lightning_vos.vos.module import VOSModule
    from lightning_vos.vos.network import VOSNetwork

_CHECKPOINTING = "model: {init_args: {activation_checkpointing: true}}\n"


def build_network(recipe: str) -> VOSNetwork[Any]:
    """The network of a recipe with random weights, the same each time.

    Args:
        recipe: Names or paths of configs as `--config` takes them, joined by `+`; the suffix may be left out.

    Raises:
        ConfigError: if a config is missing or wrong, or its model does not segment videos.
    """
    return build_module(recipe).network


def build_module(recipe: str, *, is_checkpointed: bool = False) -> VOSModule:
    """The module of a recipe with random weights, the same each time.

    Args:
        recipe: As `build_network`.
        is_checkpointed: Whether its training computes activations again instead of keeping them.

    Raises:
        ConfigError: if a config is missing or wrong, or its model does not segment videos.
    """
    from tempfile import TemporaryDirectory

    import torch

    from lightning_vos.commands.trainer import ModelCLI
    from lightning_vos.vos.module import VOSModule

    torch.manual_seed(0)
    names = [name if name.endswith((".yaml", ".yml")) else f"{name}.yaml" for name in recipe.split("+")]
    with TemporaryDirectory() as folder:
        if is_checkpointed:
            option = Path(folder) / "activation_checkpointing.yaml"
            option.write_text(_CHECKPOINTING, encoding="utf-8")
            names.append(str(option))
        model = ModelCLI(names).model
    if not isinstance(model, VOSModule):
        raise ConfigError(
            f"{recipe} has no network to measure: {type(model).__qualname__} does not segment videos frame by frame.\n"
            "  expected a recipe such as mavos_mobilenetv2"
        )
    return model


def benchmark_memory(recipes: Sequence[str], setting: Setting, frames: int, output: Path) -> None:
    """Run each recipe over a long synthetic video; leaves a table of rows for each, a summary and a figure.

    Args:
        recipes: As `build_network`, one or more.
        setting: What they run on.
        frames: Length of the video.
        output: The folder to write.

    Raises:
        UserError: if a recipe cannot be built, or the folder holds files.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from lightning_vos.benchmarks.memory import MIB, FrameRow, curves, summarize
    from lightning_vos.benchmarks.process import StoppedError, in_fresh_process
    from lightning_vos.io.plots import over_frames, write_figure
    from lightning_vos.io.writing import written_beside

    if frames < 2:
        raise ConfigError(f"--frames {frames} is no video: expected a number of at least 2, such as 500.")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"{output} holds files already. Name another --output, or remove them.")
    labels = _labels(recipes)
    console = Console()
    _check(recipes, console)
    output.mkdir(parents=True, exist_ok=True)
    measured: dict[str, list[FrameRow]] = {}
    ends: dict[str, str] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("bank {task.fields[bank]}"), console=console) as progress:
        for recipe, label in zip(recipes, labels, strict=True):
            task = progress.add_task(label, total=frames, bank="-")
            rows = measured[label] = []
            with (
                (output / f"{label}.csv").open("w", newline="", encoding="utf-8", buffering=1) as file,
                closing(in_fresh_process(_memory_rows, recipe, setting, frames)) as process,
            ):
                table = csv.writer(file)
                table.writerow(FrameRow._fields)
                try:
                    for row in process:
                        table.writerow(row)
                        rows.append(row)
                        bank = f"{row.bank_bytes / MIB:.1f} MiB, {row.bank_frames} frames"
                        progress.update(task, advance=1, bank=bank)
                except KeyboardInterrupt:
                    raise KeyboardInterrupt(f"stopped; the rows so far are in {output}") from None
                except StoppedError as stop:
                    ends[label] = f"{stop} at frame {len(rows)}"
                    console.print(f"{label}: {ends[label]}", highlight=False)
    curve = {label: curves(rows, setting) for label, rows in measured.items() if len(rows) > 1}
    if not curve:
        raise ConfigError("Nothing was measured: every recipe stopped at once. A smaller --size needs less memory.")
    summaries = {label: summarize(values) for label, values in curve.items()}
    with written_beside(output / "summary.json") as temporary:
        content = {
            **_circumstances(setting),
            "recipes": {label: {**s._asdict(), "stopped": ends.get(label)} for label, s in summaries.items()},
        }
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    memory = _memory_name(setting)
    panels = {
        "long-term bank, MiB": {label: values.bank / MIB for label, values in curve.items()},
        "ms a frame (running median)": {label: 1e3 * _running_median(c.seconds) for label, c in curve.items()},
        f"{memory}, MiB": {label: values.memory / MIB for label, values in curve.items()},
    }
    write_figure(output / "memory.png", over_frames(panels))
    _print_summaries(console, summaries, memory)
    console.print(f"Rows, summary and memory.png are in {output}", highlight=False, soft_wrap=True)


def benchmark_frame(recipes: Sequence[str], setting: Setting, repeats: int, *, is_profiled: bool) -> None:
    """Print what one frame of each recipe costs, relative to the first recipe's frame that reads one memory frame.

    Args:
        recipes: As `build_network`, one or more.
        setting: What they run on.
        repeats: Runs that a median is taken over.
        is_profiled: Whether to print the operators that a frame spends most time in.

    Raises:
        UserError: if a recipe cannot be built or measured.
    """
    from rich.console import Console
    from rich.table import Column, Table

    from lightning_vos.benchmarks.memory import MIB
    from lightning_vos.benchmarks.process import StoppedError, in_fresh_process

    if repeats < 1:
        raise ConfigError(f"--repeats {repeats} measures nothing: expected a number of at least 1.")
    labels = _labels(recipes)
    console = Console()
    _check(recipes, console)
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else the profiler of the fresh process tells of its own state
    clock = "CPU" if setting.device_type == "cpu" else "wall"
    table = Table(Column("", overflow="fold"), "relative", f"{clock} ms", "bank MiB", "memory MiB")
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


def benchmark_training(
    recipes: Sequence[str], setting: Setting, lengths: Sequence[int], batch: int, repeats: int
) -> None:
    """Print what a training step of each recipe costs, with and without activation checkpointing.

    Args:
        recipes: As `build_network`, one or more.
        setting: What they are trained on.
        lengths: Frames of a clip, each measured for itself.
        batch: Clips of a batch.
        repeats: Steps that a median is taken over, after one that is not counted.

    Raises:
        UserError: if a recipe cannot be built, or nothing can be measured.
    """
    from rich.console import Console
    from rich.table import Column, Table

    from lightning_vos.benchmarks.memory import MIB
    from lightning_vos.benchmarks.process import StoppedError, in_fresh_process

    if min(*lengths, batch, repeats) < 1:
        given = f"--lengths {' '.join(map(str, lengths))} --batch {batch} --repeats {repeats}"
        raise ConfigError(f"{given} measures nothing: expected numbers of at least 1.")
    labels = _labels(recipes)
    console = Console()
    _check(recipes, console)
    clock = "CPU" if setting.device_type == "cpu" else "wall"
    table = Table(Column("", overflow="fold"), "time", f"{clock} ms", "memory", "peak MiB")
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


def benchmark_attention(setting: Setting, repeats: int) -> None:
    """Print what the deformable attentions of a frame cost, ours and a plain restatement, and what bounds them.

    Args:
        setting: The size of the frames, and what it runs on.
        repeats: Runs that a median is taken over; both take turns.

    Raises:
        UserError: if nothing can be measured.
    """
    from rich.console import Console
    from rich.table import Column, Table

    from lightning_vos.benchmarks.attention import BYTES, OPERATIONS, Rates
    from lightning_vos.benchmarks.memory import MIB
    from lightning_vos.benchmarks.process import StoppedError, in_fresh_process

    if repeats < 1:
        raise ConfigError(f"--repeats {repeats} measures nothing: expected a number of at least 1.")
    console = Console()
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else the profiler of the fresh process tells of its own state
    clock = "CPU" if setting.device_type == "cpu" else "wall"
    costs = (f"{clock}\nms", "plain", "ratio", "peak\nMiB", "plain", "kept\nMiB", "plain")
    parts = ("grid_sample", "weighting", "rest", "Gop/s", "GB/s", "differ")
    table, bounds = (Table("", *(Column(title, justify="right") for title in titles)) for titles in (costs, parts))
    rates, stopped = None, ""
    with (
        console.status("measuring") as status,
        closing(in_fresh_process(_attention_costs, setting, repeats)) as process,
    ):
        try:
            for cost in cast("Iterator[AttentionCost | Rates]", process):
                if isinstance(cost, Rates):
                    rates = cost
                    continue
                what = "  with gradients" if cost.is_training else cost.what
                status.update(cost.what)
                ours, plain = cost.seconds
                sizes = (f"{size / MIB:.0f}" for pair in (cost.peak_bytes, cost.kept_bytes) for size in pair)
                table.add_row(what, f"{1e3 * ours:.1f}", f"{1e3 * plain:.1f}", f"{plain / ours:.2f}", *sizes)
                speeds = (f"{per * cost.sampled / ours / 1e9:.1f}" for per in (OPERATIONS, BYTES))
                shares = (f"{share:.2f}" for share in cost.shares.values())
                bounds.add_row(what, *shares, *(("", "") if cost.is_training else speeds), f"{cost.difference:.0e}")
        except StoppedError as stop:
            stopped = str(stop)
    if rates is None or not table.rows:
        raise ConfigError(f"Nothing was measured: {stopped}. A smaller --size needs less memory.")
    console.print(table)
    console.print(
        "Encoder: in the own frame (space) and in four neighbours (time); decoder: 300 queries. Ours samples again in "
        "the backward pass; plain stacks all it sampled and keeps it. ratio: of the times, plain to ours. peak: of "
        "tensors above the inputs. kept: of these, what waits for the backward pass; layers and frames add up."
        f"{f' Then it {stopped}.' if stopped else ''}",
        highlight=False,
    )
    console.print(bounds)
    console.print(
        f"Shares of our time. A sampled number takes {OPERATIONS} operations and {BYTES} bytes of reading and writing; "
        f"here a product of matrices makes {rates.operations / 1e9:.1f} Gop/s, copying {rates.bytes / 1e9:.1f} GB/s. "
        "differ: the largest difference of outputs, or of gradients, as a share of the largest number.",
        highlight=False,
    )


def _attention_costs(setting: Setting, repeats: int) -> Iterator[AttentionCost | Rates]:
    from lightning_vos.benchmarks.attention import measure_attention

    return measure_attention(setting, repeats)


def _step_costs(
    recipe: str, is_checkpointed: bool, setting: Setting, length: int, batch: int, repeats: int
) -> Iterator[StepCost]:
    from lightning_vos.benchmarks.training import measure_training

    module = build_module(recipe, is_checkpointed=is_checkpointed)
    return measure_training(module, setting, length, batch, repeats)


def _memory_rows(recipe: str, setting: Setting, frames: int) -> Iterator[FrameRow]:
    from lightning_vos.benchmarks.memory import measure_memory

    return measure_memory(build_network(recipe), setting, frames)


def _frame_costs(recipe: str, setting: Setting, repeats: int, is_profiled: bool) -> Iterator[Cost | str]:
    from lightning_vos.benchmarks.frame import measure_frame

    return measure_frame(build_network(recipe), setting, repeats, is_profiled=is_profiled)


def _labels(recipes: Sequence[str]) -> list[str]:
    """What recipes are called in tables, and their files: without folders and suffixes."""
    labels = ["+".join(Path(name).stem for name in recipe.split("+")) for recipe in recipes]
    if twice := {label for label in labels if labels.count(label) > 1}:
        raise ConfigError(f"Two recipes are called {min(twice)}, so their results could not be told apart. Rename one.")
    return labels


def _check(recipes: Sequence[str], console: Console) -> None:
    """Refuse a recipe that cannot be built, before the first is measured."""
    with console.status("building the recipes"):
        for recipe in recipes:
            build_network(recipe)
    console.print("Weights are random, the video is synthetic: costs are real, masks mean nothing.", soft_wrap=True)


def _circumstances(setting: Setting) -> dict[str, Any]:
    import torch

    from lightning_vos import __version__

    is_cuda = setting.device_type == "cuda"
    return {
        "setting": vars(setting),
        "time": "CPU seconds of the process" if setting.device_type == "cpu" else "wall seconds",
        "memory": _memory_name(setting),
        "device": torch.cuda.get_device_name(setting.device) if is_cuda else platform.processor() or platform.machine(),
        "versions": {"lightning_vos": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }


def _memory_name(setting: Setting) -> str:
    if setting.device_type == "cuda":
        return "GPU peak"
    return "resident memory" if Path("/proc/self/statm").exists() else "peak resident memory"


def _running_median(values: Any) -> Any:
    import numpy as np

    width = min(max(len(values) // 20, 1) * 2 + 1, 25)
    padded = np.pad(values, width // 2, mode="edge")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, width), axis=1)


def _print_summaries(console: Console, summaries: Mapping[str, Summary], memory: str) -> None:
    from rich.table import Column, Table

    from lightning_vos.benchmarks.memory import MIB

    unit = next(iter(summaries.values())).seconds[0]
    titles = ("frame", "bank\nMiB", "bank\nframes", "ms a\nframe", "relative", f"{memory}\nMiB".replace(" ", "\n", 1))
    table = Table(Column("recipe", overflow="fold"), *(Column(title, no_wrap=True) for title in titles))
    for label, s in summaries.items():
        sizes = zip(s.marks, s.bank_bytes, s.bank_frames, s.seconds, s.memory_bytes, strict=True)
        for number, (mark, bank, held, spent, used) in enumerate(sizes):
            table.add_row(
                label if number == 0 else "",
                str(mark),
                f"{bank / MIB:.1f}",
                str(held),
                f"{1e3 * spent:.0f}",
                f"{spent / unit:.2f}",
                f"{used / MIB:.0f}" + (f" ({(used - s.memory_bytes[0]) / MIB:+.0f})" if number else ""),
            )
        table.add_section()
    console.print(table)
    for label, s in summaries.items():
        verdict = f"constant from frame {s.steady_from}" if s.is_constant else f"growing, to frame {s.steady_from}"
        early, late = (f"{first} to {last - 1}" for first, last in (s.early, s.late))
        console.print(
            f"{label}: the bank is {verdict}; frames {late} take {s.late_over_early:.3f} times what frames {early} take"
            f" (median), and {s.late_minus_early_bytes / MIB:+.1f} MiB of {memory}.",
            highlight=False,
            soft_wrap=True,
        )


def benchmark_scoring(ground_truth: Path, prediction: Path, protocol: str, repeats: int) -> None:
    """Score a folder several times, with one process and with two, and with the tools of others that are installed.

    Args:
        ground_truth: A folder of `<sequence>/<frame>.png`.
        prediction: Such a folder.
        protocol: As `evaluation.score` takes it.
        repeats: How often, all in turn; the least CPU time of each is taken.

    Raises:
        UserError: if the folder cannot be scored.
    """
    from rich.console import Console
    from rich.table import Table

    from lightning_vos.benchmarks.scoring import ScoringCost, installed_tools, measure_parts, measure_scoring

    if repeats < 1:
        raise ConfigError(f"--repeats is {repeats}; expected 1 or more")
    console = Console()
    runs = [("lightning_vos", 1), ("lightning_vos", 2), *((tool, 1) for tool in installed_tools())]
    costs: dict[tuple[str, int], list[ScoringCost]] = {run: [] for run in runs}
    failed: dict[tuple[str, int], str] = {}
    with console.status("scoring") as status:
        for number in range(repeats):
            for run in runs:
                if run in failed:
                    continue
                status.update(f"scoring, round {number + 1} of {repeats}: {run[0]}, {run[1]} process(es)")
                try:
                    costs[run].append(measure_scoring(run[0], ground_truth, prediction, protocol, run[1]))
                except ConfigError as error:
                    if run[0] == "lightning_vos":
                        raise
                    failed[run] = str(error)
        status.update("profiling")
        parts = measure_parts(ground_truth, prediction, protocol)
    ours = min(costs["lightning_vos", 1])
    if not ours.object_frames:
        raise ConfigError(f"Nothing is scored in {prediction} by {protocol}: there is nothing to measure.")
    table = Table("tool", "processes", "CPU s / 1000 object-frames", "CPU", "time", "peak MiB", "J&F %")
    for (tool, processes), measured in costs.items():
        if measured:
            least = min(measured)
            table.add_row(
                tool,
                str(processes),
                f"{1000 * least.cpu / ours.object_frames:.2f}",
                f"{least.cpu / ours.cpu:.2f}",
                f"{min(cost.wall for cost in measured) / min(cost.wall for cost in costs['lightning_vos', 1]):.2f}",
                f"{least.memory / 2**20:.0f}",
                f"{least.measure:.2f}",
            )
    console.print(table)
    console.print(
        f"{ours.object_frames} object-frames by {protocol}; CPU and time are relative to the first row, imports not "
        "counted. vos-benchmark has its own protocol: --protocol vos_benchmark gives its J&F. The peak of several "
        "processes is that of all together, at most.",
        highlight=False,
        soft_wrap=True,
    )
    console.print("Of the time: " + ", ".join(f"{part} {share:.2f}" for part, share in parts.items()), highlight=False)
    for (tool, _), reason in failed.items():
        console.print(f"{tool}: {reason}", highlight=False, soft_wrap=True)


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


def main(args: list[str]) -> None:
    """Run `lightning_vos benchmark` with the words that follow it.

    Raises:
        UserError: The words ask for something that cannot be done.
    """
    parser = argparse.ArgumentParser(
        "lightning_vos benchmark", description="Measure recipes, attention, scoring, or loading.", allow_abbrev=False
    )
    kinds = parser.add_subparsers(
        dest="kind", required=True, metavar="memory | frame | training | attention | scoring | loader"
    )
    memory = kinds.add_parser("memory", help="memory and time over a long video", allow_abbrev=False)
    frame = kinds.add_parser("frame", help="what one frame costs, and its parts", allow_abbrev=False)
    training = kinds.add_parser("training", help="what a training step costs", allow_abbrev=False)
    for kind in (memory, frame, training):
        kind.add_argument(
            "recipes",
            nargs="+",
            metavar="RECIPE",
            help="a config such as mavos_mobilenetv2, or several joined by +: mavos_mobilenetv2+memory/focal",
        )
        kind.add_argument("--size", type=int, nargs=2, default=(480, 854), metavar=("H", "W"), help="of the frames")
        kind.add_argument("--objects", type=int, default=2, help="in the first mask (2)")
        kind.add_argument("--threads", type=int, help="of the CPU (1 where it does the work)")
        kind.add_argument("--precision", choices=("32", "bf16"), default="32", help="bf16 is autocast")
        add_device_option(kind)
    memory.add_argument("--frames", type=int, default=500, help="length of the video (500)")
    memory.add_argument("--output", type=Path, default=Path("runs/benchmark_memory"), metavar="DIR", help="to write")
    frame.add_argument("--repeats", type=int, default=5, help="runs that a median is taken over (5)")
    frame.add_argument("--profile", action="store_true", help="print the operators of a frame that take most time")
    training.add_argument("--lengths", type=int, nargs="+", default=(8,), metavar="T", help="frames of a clip (8)")
    training.add_argument("--batch", type=int, default=1, help="clips of a step (1)")
    training.add_argument("--repeats", type=int, default=3, help="steps that a median is taken over (3)")
    attention = kinds.add_parser(
        "attention", help="what the deformable attention of TAFormer and SeqFormer costs", allow_abbrev=False
    )
    attention.add_argument("--size", type=int, nargs=2, default=(360, 640), metavar=("H", "W"), help="of the frames")
    attention.add_argument("--threads", type=int, help="of the CPU (1 where it does the work)")
    attention.add_argument("--repeats", type=int, default=5, help="runs that a median is taken over (5)")
    add_device_option(attention)
    scoring = kinds.add_parser("scoring", help="what scoring a folder costs", allow_abbrev=False)
    scoring.add_argument("ground_truth", type=Path, metavar="GROUND_TRUTH", help="a folder of <sequence>/<frame>.png")
    scoring.add_argument("prediction", type=Path, metavar="PREDICTION", help="such a folder")
    scoring.add_argument("--protocol", default="davis2017", choices=("davis2017", "vos_benchmark"), help="(davis2017)")
    scoring.add_argument("--repeats", type=int, default=3, help="runs of which the fastest counts (3)")
    loader = kinds.add_parser(
        "loader",
        help="frames a second of a train loader",
        description="What a train loader gives; --config and other options are those of fit.",
        allow_abbrev=False,
    )
    loader.add_argument("--workers", type=int, nargs="+", default=(0, 1, 2), metavar="N", help="to compare (0 1 2)")
    loader.add_argument("--batches", type=int, default=16, help="that are counted, of each (16)")
    words, recipe = parser.parse_known_args(args)
    if words.kind == "loader":
        benchmark_loader(recipe, words.workers, words.batches)
        return
    if recipe:
        parser.error(f"unrecognized arguments: {' '.join(recipe)}")
    if words.kind == "scoring":
        benchmark_scoring(words.ground_truth, words.prediction, words.protocol, words.repeats)
        return

    from lightning_vos.benchmarks.workload import Setting

    device = choose_device(words.device)
    threads = 1 if words.threads is None and device.type == "cpu" else words.threads
    if words.kind == "attention":
        benchmark_attention(Setting(tuple(words.size), 1, str(device), threads, "32"), words.repeats)
        return
    setting = Setting(tuple(words.size), words.objects, str(device), threads, words.precision)
    if words.kind == "memory":
        benchmark_memory(words.recipes, setting, words.frames, words.output)
    elif words.kind == "training":
        benchmark_training(words.recipes, setting, words.lengths, words.batch, words.repeats)
    else:
        benchmark_frame(words.recipes, setting, words.repeats, is_profiled=words.profile)
