from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs import TINY, TWO_PROCESSES, end, start


@pytest.fixture(scope="session")
def run_inside() -> Callable[..., None]:
    """Runs `lightning_vos WORDS...` in this process and in a folder, for what several tests look at."""

    def run(folder: Path, *words: str) -> None:
        from lightning_vos.cli import main

        interrupt = signal.getsignal(signal.SIGINT)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            patch.setattr(sys, "argv", ["lightning_vos", *words])
            try:
                main()
            finally:
                signal.signal(signal.SIGINT, interrupt)

    return run


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rendered videos of `tiny.yaml`; copy what is to be changed."""
    from datamodules.synthetic_files import SyntheticSettings, write_davis

    root = tmp_path_factory.mktemp("data")
    write_davis(root / "DAVIS", SyntheticSettings(train=4, val=3, frames=8, height=64, width=80))
    return root


@pytest.fixture(scope="session")
def tiny(data: Path) -> tuple[str, ...]:
    """The words that every run of the tiny recipe begins with."""
    return ("--config", os.fspath(TINY), "--data.root", os.fspath(data))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, run_inside: Callable[..., None], tiny: tuple[str, ...]) -> Path:
    """The run of a whole `fit` of the tiny recipe."""
    folder = tmp_path_factory.mktemp("trained")
    run_inside(folder, "fit", *tiny)
    return folder / "runs/tiny/version_0"


@pytest.fixture(scope="session")
def small_recipe(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Path], tuple[str, ...]]:
    """Writes a recipe to `small.yaml`; gives the words that its runs on the data of a folder begin with."""

    def write(recipe: str, root: Path) -> tuple[str, ...]:
        path = tmp_path_factory.mktemp("recipe") / "small.yaml"
        path.write_text(recipe)
        return ("--config", str(path), "--data.root", str(root))

    return write


@pytest.fixture(scope="session")
def fitted(tmp_path_factory: pytest.TempPathFactory, run_inside: Callable[..., None]) -> Callable[..., Path]:
    """Runs `fit WORDS...` of a small recipe, and nothing ends it; gives the run."""

    def fit(*words: str) -> Path:
        folder = tmp_path_factory.mktemp("fitted")
        run_inside(folder, "fit", *words)
        return folder / "runs/small/version_0"

    return fit


@pytest.fixture
def by_one_and_by_two(command: Callable[..., Any], workplace: Path) -> Callable[..., tuple[Path, Path, str]]:
    """Runs `test WORDS...` in this process and by two others; gives both runs, and what the two wrote."""

    def run(*words: str) -> tuple[Path, Path, str]:
        alone = command("test", *words, "--trainer.logger.name=one")
        assert alone.status == 0, alone.err
        status, out = end(start("test", *words, "--trainer.logger.name=two", *TWO_PROCESSES))
        assert status == 0, out
        assert "MEMBER: 2/2" in out
        return workplace / "runs/one/version_0", workplace / "runs/two/version_0", out

    return run


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
