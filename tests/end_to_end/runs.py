"""Starting commands in processes of their own, and reading what a run left."""

from __future__ import annotations

import contextlib
import csv
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

REPOSITORY = Path(__file__).resolve().parents[2]
TINY = Path(__file__).with_name("tiny.yaml")
TWO_PROCESSES = ("--trainer.strategy=ddp", "--trainer.devices=2")
_COMMAND = Path(sys.executable).with_name("lightning_vos")
_OF_THE_TEST_RUN = ("PYTEST_", "SLURM_", "LOCAL_RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_", "PL_GLOBAL_SEED")


def start(*words: str, program: Path = _COMMAND) -> subprocess.Popen[str]:
    """`lightning_vos WORDS...` in a process group of its own; it writes to `out.txt` in the working directory."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_OF_THE_TEST_RUN)}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    with Path("out.txt").open("w") as out:
        return subprocess.Popen(
            [sys.executable, program, *words],  # Lightning starts other ranks by the same words
            env={**kept, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
            stdout=out,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )


def end(process: subprocess.Popen[str], seconds: float = 150) -> tuple[int, str]:
    """Status and output; the whole group is killed if it has not ended in time."""
    try:
        status = process.wait(seconds)
    finally:
        kill(process)
    return status, Path("out.txt").read_text()


def kill(process: subprocess.Popen[str]) -> int:
    """Kills the process with all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait(30)


def table(run: Path) -> dict[tuple[str, int], float]:
    """(name, step) -> value of a run's metrics."""
    with (run / "metrics.csv").open(newline="") as file:
        return {
            (name, int(row["step"])): float(value)
            for row in csv.DictReader(file)
            for name, value in row.items()
            if value and name not in ("step", "epoch")
        }


def checkpoint(run: Path, name: str = "last.ckpt") -> dict[str, Any]:
    return torch.load(run / "checkpoints" / name, weights_only=True)


def last(run: Path) -> str:
    """The path of a run's last checkpoint, for a command."""
    return str(run / "checkpoints/last.ckpt")


def files(folder: Path, pattern: str) -> dict[str, bytes]:
    """Path in the folder -> content, of every file that matches."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob(pattern))}


def assert_refused(finished: Any, *parts: str) -> None:
    """It ended with status 2, and with a message of at most eight lines that holds all parts."""
    assert finished.status == 2, finished.err
    message = finished.err[finished.err.index("error: ") :]
    assert len(message.splitlines()) <= 8, message
    assert "Traceback" not in finished.err, finished.err
    for part in parts:
        assert part in message, message
