"""`lightning_vos report RUN [RUN ...]`: one page of HTML about runs, side by side."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_vos.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence


def page(folders: Sequence[Path], output: Path = Path("report.html")) -> None:
    """Write one page about runs: scores, curves, worst frames, settings; it needs nothing but itself to be shown.

    Args:
        folders: Of the runs; differences are to the first.
        output: The file to write.

    Raises:
        ConfigError: A folder holds no results of a run, or the output is no name of a page.
    """
    if output.suffix.lower() not in (".html", ".htm") or output.is_dir():
        raise ConfigError(f"--output {output} is no name of a page.\n  expected a file such as report.html")
    from dataclasses import replace

    from rich.console import Console

    from lightning_vos.commands.report_data import open_all
    from lightning_vos.figures.gallery import collect
    from lightning_vos.figures.page import render_page
    from lightning_vos.figures.run_results import read_runs
    from lightning_vos.io.writing import written_beside

    runs, console = read_runs(folders), Console()
    with console.status("reading the data"):
        sources, notes = open_all([run for run in runs if run.has_results])
        gallery = collect(runs, sources)
        gallery = replace(gallery, notes=[*notes, *gallery.notes])
        text = render_page(runs, gallery)
    with written_beside(output) as temporary:
        temporary.write_text(text, encoding="utf-8")
    for note in gallery.notes:
        console.print(note, highlight=False, soft_wrap=True, markup=False)
    console.print(f"The page is {output}", highlight=False, soft_wrap=True)


def main(args: list[str]) -> None:
    """Run `lightning_vos report` with the runs that follow it.

    Raises:
        UserError: The words ask for something that cannot be done.
    """
    parser = argparse.ArgumentParser(
        "lightning_vos report",
        description="Write one page of HTML about runs, side by side.",
        allow_abbrev=False,
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a folder such as runs/mavos_r50/version_1")
    parser.add_argument("-o", "--output", type=Path, default=Path("report.html"), metavar="FILE", help="(report.html)")
    words = parser.parse_args(args)
    page(words.runs, words.output)
