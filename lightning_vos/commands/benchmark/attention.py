"""`lightning_vos benchmark attention`: what the deformable attention of TAFormer and SeqFormer costs."""

from __future__ import annotations

import os
from contextlib import closing
from typing import TYPE_CHECKING, cast

from lightning_vos.commands.benchmark.recipes import add_device_options, clock_name, device_and_threads
from lightning_vos.errors import ConfigError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from lightning_vos.benchmarks.attention import AttentionCost, Rates
    from lightning_vos.benchmarks.workload import Setting


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
    from lightning_vos.benchmarks.process import StoppedError, in_fresh_process
    from lightning_vos.benchmarks.workload import MIB

    if repeats < 1:
        raise ConfigError(f"--repeats {repeats} measures nothing: expected a number of at least 1.")
    console = Console()
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else the profiler of the fresh process tells of its own state
    costs = (f"{clock_name(setting)}\nms", "plain", "ratio", "peak\nMiB", "plain", "kept\nMiB", "plain")
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


def add_parser(kinds: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb and its options."""
    parser = kinds.add_parser(
        "attention", help="what the deformable attention of TAFormer and SeqFormer costs", allow_abbrev=False
    )
    parser.add_argument("--size", type=int, nargs=2, default=(360, 640), metavar=("H", "W"), help="of the frames")
    add_device_options(parser)
    parser.add_argument("--repeats", type=int, default=5, help="runs that a median is taken over (5)")
    parser.set_defaults(run=_run)


def _run(words: argparse.Namespace) -> None:
    from lightning_vos.benchmarks.workload import Setting

    device, threads = device_and_threads(words)
    benchmark_attention(Setting(tuple(words.size), 1, device, threads, "32"), words.repeats)
