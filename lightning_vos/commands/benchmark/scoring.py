"""`lightning_vos benchmark scoring`: what scoring a folder costs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lightning_vos.errors import ConfigError

if TYPE_CHECKING:
    import argparse


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


def add_parser(kinds: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb and its options."""
    parser = kinds.add_parser("scoring", help="what scoring a folder costs", allow_abbrev=False)
    parser.add_argument("ground_truth", type=Path, metavar="GROUND_TRUTH", help="a folder of <sequence>/<frame>.png")
    parser.add_argument("prediction", type=Path, metavar="PREDICTION", help="such a folder")
    parser.add_argument("--protocol", default="davis2017", choices=("davis2017", "vos_benchmark"), help="(davis2017)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of which the fastest counts (3)")
    parser.set_defaults(run=_run)


def _run(words: argparse.Namespace) -> None:
    benchmark_scoring(words.ground_truth, words.prediction, words.protocol, words.repeats)
