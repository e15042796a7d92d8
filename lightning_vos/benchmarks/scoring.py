"""What scoring a folder costs, beside the official tools where they are installed; torch is never imported.

Each measurement is a process of its own, `python -m lightning_vos.benchmarks.scoring`, which prints a line of JSON.
"""

from __future__ import annotations

import cProfile
import json
import os
import pstats
import resource
import subprocess
import sys
import time
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from lightning_vos.errors import ConfigError, UserError

TOOLS = {"vos-benchmark": "vos_benchmark", "davis2017-evaluation": "davis2017"}
"""Tools of others -> the package that shows whether one is installed."""

# Where the time goes: a name for it, and the function whose time it is.
_PARTS = {
    "read": ("trees.py", "read"),
    "decode": ("png.py", "read_indices"),
    "crop": ("functional.py", "_cropped"),
    "boundaries": ("functional.py", "_boundaries"),
    "dilation": ("functional.py", "_dilated"),
    "identities": ("identity.py", "objects_under"),
}


class ScoringCost(NamedTuple):
    """What one scoring of a folder cost."""

    cpu: float  # seconds of all processes, without imports
    wall: float  # seconds
    memory: int  # bytes resident at the peak: of the first process, and as much as the largest of the others for each
    object_frames: int  # 0 where a tool does not tell
    measure: float  # J&F in percent, to see that tools agree


def installed_tools() -> list[str]:
    """The tools of others that are there."""
    return [name for name, package in TOOLS.items() if find_spec(package) is not None]


def measure_scoring(tool: str, ground_truth: Path, prediction: Path, protocol: str, workers: int = 1) -> ScoringCost:
    """Score a folder once in a fresh process.

    Args:
        tool: "lightning_vos" or one of `TOOLS`.
        ground_truth: A folder of `<sequence>/<frame>.png`.
        prediction: Such a folder.
        protocol: As `evaluation.score` takes it; the others know only their own.
        workers: Processes.

    Raises:
        ConfigError: The tool cannot score the folder; what it said last is in the message.
    """
    return ScoringCost(*_in_fresh_process([tool, str(ground_truth), str(prediction), protocol, str(workers)]))


def measure_parts(ground_truth: Path, prediction: Path, protocol: str) -> dict[str, float]:
    """Name the share of the time that each part of scoring takes; they add up to 1.

    Raises:
        ConfigError: The folder cannot be scored.
    """
    return _in_fresh_process(["parts", str(ground_truth), str(prediction), protocol, "1"])


def _in_fresh_process(words: list[str]) -> Any:
    finished = subprocess.run(
        [sys.executable, "-m", "lightning_vos.benchmarks.scoring", *words], capture_output=True, text=True, check=False
    )
    lines = finished.stdout.splitlines()
    try:
        return json.loads(lines[-1])
    except (IndexError, ValueError) as error:
        said = (finished.stderr.strip() or finished.stdout.strip() or "nothing").splitlines()
        last = said[-1:] if any("Traceback" in line for line in said) else said[-6:]
        raise ConfigError(f"{words[0]} could not score {words[2]} against {words[1]}: " + "\n".join(last)) from error


def _ours(ground_truth: Path, prediction: Path, protocol: str, workers: int) -> tuple[int, float]:
    from lightning_vos.evaluation import score

    scores = score(ground_truth, prediction, protocol, strict=False, workers=workers)  # type: ignore[arg-type]
    return sum(len(frames.names) for frames in scores.frames.values()), scores.summary["J&F"]


def _vos_benchmark(ground_truth: Path, prediction: Path, workers: int) -> float:
    from vos_benchmark.benchmark import benchmark

    results = benchmark([str(ground_truth)], [str(prediction)], strict=True, num_processes=workers, verbose=False)
    return float(results[0][0])


def _davis2017(ground_truth: Path, prediction: Path) -> float:
    from davis2017.evaluation import DAVISEvaluation

    with TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "ImageSets/2017").mkdir(parents=True)
        names = sorted(path.name for path in ground_truth.iterdir() if path.is_dir())
        (root / "ImageSets/2017/val.txt").write_text("\n".join(names))
        (root / "Annotations").mkdir()
        (root / "Annotations/480p").symlink_to(ground_truth.absolute())
        for mask in ground_truth.glob("*/*.png"):  # the tool lists frames, and opens none
            image = root / "JPEGImages/480p" / mask.parent.name / f"{mask.stem}.jpg"
            image.parent.mkdir(parents=True, exist_ok=True)
            image.touch()
        evaluation = DAVISEvaluation(davis_root=str(root), task="semi-supervised", gt_set="val")
        results = evaluation.evaluate(str(prediction))
    means = [sum(results[measure]["M"]) / len(results[measure]["M"]) for measure in ("J", "F")]
    return 100 * sum(means) / 2


def _profiled(ground_truth: Path, prediction: Path, protocol: str) -> dict[str, float]:
    profile = cProfile.Profile()
    profile.runcall(_ours, ground_truth, prediction, protocol, 1)
    statistics = pstats.Stats(profile)
    functions: dict[tuple[str, int, str], tuple[int, int, float, float, Any]] = statistics.stats  # type: ignore[attr-defined]
    total = sum(times[2] for times in functions.values())
    shares = {}
    for part, (file, function) in _PARTS.items():
        spent = [t[3] for (path, _, name), t in functions.items() if (Path(path).name, name) == (file, function)]
        shares[part] = sum(spent) / total
    return {**shares, "counts and the rest": 1 - sum(shares.values())}


_RSS_UNIT = 1 if sys.platform == "darwin" else 1024


def _own_peak() -> int:
    """Bytes. Linux counts what the process was before it became Python into the usage, but not into the status."""
    status = Path("/proc/self/status")
    if status.is_file():
        return 1024 * next(int(line.split()[1]) for line in status.read_text().splitlines() if line[:6] == "VmHWM:")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT


def _main(tool: str, ground_truth: Path, prediction: Path, protocol: str, workers: int) -> None:
    import_module(TOOLS.get(tool, "lightning_vos.evaluation.scoring"))
    if tool == "parts":
        sys.stdout.write(json.dumps(_profiled(ground_truth, prediction, protocol)) + "\n")
        return
    object_frames, begin, started = 0, os.times(), time.perf_counter()
    if tool == "lightning_vos":
        object_frames, measure = _ours(ground_truth, prediction, protocol, workers)
    elif tool == "vos-benchmark":
        measure = _vos_benchmark(ground_truth, prediction, workers)
    else:
        measure = _davis2017(ground_truth, prediction)
    wall, end = time.perf_counter() - started, os.times()
    cpu = sum(end[:4]) - sum(begin[:4])  # user and system, of this process and of its children that have ended
    memory = _own_peak() + workers * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * _RSS_UNIT
    sys.stdout.write(json.dumps(ScoringCost(cpu, wall, memory, object_frames, measure)) + "\n")


if __name__ == "__main__":
    try:
        _main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4], int(sys.argv[5]))
    except UserError as error:
        sys.exit(str(error))
