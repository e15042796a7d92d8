"""What every test process needs before anything heavy is imported: one thread, no network, no account."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

os.environ.update(
    OMP_NUM_THREADS="1",
    HF_HUB_OFFLINE="1",
    NO_ALBUMENTATIONS_UPDATE="1",
    WANDB_MODE="offline",
    WANDB_SILENT="true",
    WANDB_DIR=tempfile.mkdtemp(prefix="wandb-"),
)


# A shell switches Ctrl-C off for what it starts in the background, and processes hand that on to those they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Limits the threads of the libraries that the collected tests have imported."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(0)


@pytest.fixture(autouse=True, scope="module")
def forgotten(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a file's functions have kept of networks goes with the file: kept together they are gigabytes."""
    yield
    for kept in vars(request.module).values():
        if hasattr(kept, "cache_clear"):
            kept.cache_clear()
    gc.collect()


class Finished(NamedTuple):
    """How a command ended: its status and what it wrote."""

    status: object
    out: str
    err: str


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Finished]:
    """Runs `lightning_vos WORDS...` in this process; gives its status (0 if it returned) and what it wrote."""
    interrupt = signal.getsignal(signal.SIGINT)

    def run(*words: str) -> Finished:
        from lightning_vos.cli import main

        monkeypatch.setattr(sys, "argv", ["lightning_vos", *words])
        capfd.readouterr()
        # Lightning writes to the stderr of the test that imported it
        for logger in ("lightning", "lightning.fabric", "lightning.pytorch"):
            for handler in logging.getLogger(logger).handlers:
                if isinstance(handler, logging.StreamHandler):
                    handler.stream = sys.stderr
        status: object = 0
        try:
            main()
        except SystemExit as stop:
            status = stop.code
        finally:
            # Lightning leaves Ctrl-C switched off after it shut down
            signal.signal(signal.SIGINT, interrupt)
            if "torch" in sys.modules:
                sys.modules["torch"].set_flush_denormal(False)  # as commands leave it
        return Finished(status, *capfd.readouterr())

    return run
