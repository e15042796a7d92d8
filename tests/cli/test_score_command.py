"""`score` and `benchmark scoring` as a person meets them."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from lightning_vos.benchmarks import scoring
from lightning_vos.io.masks import write_mask


def square(left, value=1):
    labels = np.zeros((40, 60), np.uint8)
    labels[10:26, left : left + 20] = value
    return labels


@pytest.fixture
def folders(tmp_path):
    """Two sequences of five frames: in one the prediction is right, in the other it lags behind."""
    for name, lag in (("exact", 0), ("lagging", 4)):
        for frame in range(5):
            labels = square(5 + 2 * frame)
            labels[30:36, 40:50] = 2
            write_mask(tmp_path / f"truth/{name}/{frame:05}.png", labels)
            write_mask(
                tmp_path / f"results/{name}/{frame:05}.png",
                np.where(labels == 1, 0, labels) + square(5 + 2 * frame - lag),
            )
    return str(tmp_path / "truth"), str(tmp_path / "results")


def test_scores_are_printed_and_written(command, folders, tmp_path):
    finished = command(
        "score", *folders, "--protocol", "davis2017", "--json", str(tmp_path / "a/s.json"), "--csv", str(tmp_path / "b")
    )
    assert (finished.status, finished.err) == (0, "")
    content = json.loads((tmp_path / "a/s.json").read_text())
    # of the lagging square 16 of 24 columns are shared; the three other objects are right
    assert content["summary"]["J"] == pytest.approx((3 * 100 + 100 * 16 / 24) / 4)
    assert re.search(r"lagging.* 83\.3 ", finished.out)
    assert re.search(r"exact +│ 100\.0 │ 100\.0 │ 100\.0 │ 0", finished.out)
    assert "all annotated frames but the first and the last" in finished.out
    assert "Left out: the first and the last frame do not count (4)\n" in finished.out
    assert "last of a sequence. 2 sequences.\n" in finished.out
    with (tmp_path / "b/objects.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["sequence"], row["object"]) for row in rows] == [
        ("exact", "1"), ("exact", "2"), ("lagging", "1"), ("lagging", "2")
    ]  # fmt: skip
    assert float(rows[2]["J"]) == pytest.approx(100 * 16 / 24)
    assert len(content["frames"]) == 4
    assert content["frames"][2]["J"] == pytest.approx([100 * 16 / 24] * 3)


def test_everything_wrong_is_named_and_can_be_forgiven(command, folders, tmp_path):
    (tmp_path / "results/exact/00001.png").unlink()
    write_mask(tmp_path / "results/exact/00002.png", np.zeros((4, 4), np.uint8))
    (tmp_path / "results/lagging/00003.png").write_text("no picture")
    refused = command("score", *folders, "--protocol", "davis2017")
    assert refused.status == 2
    for part in ("exact 00001: missing frame", "exact 00002: wrong size: found 4x4", "lagging 00003: unreadable file"):
        assert part in refused.err
    assert "--lenient" in refused.err
    assert refused.out == ""
    forgiven = command("score", *folders, "--protocol", "davis2017", "--lenient")
    assert forgiven.status == 0
    assert "Forgiven: 3 times\n" in forgiven.out
    lines = forgiven.out.splitlines()
    for start, remedy in (
        ("  exact 00001: missing frame: ", "; an empty mask stands in"),
        ("  exact 00002: wrong size: ", "; it is resized (nearest pixel)"),
        ("  lagging 00003: unreadable file: ", "; an empty mask stands in"),
    ):
        assert [line.endswith(remedy) for line in lines if line.startswith(start)] == [True]


def test_names_with_markup_are_printed_as_they_are(command, folders, tmp_path):
    for folder in folders:
        Path(folder, "lagging").rename(Path(folder, "[cam]judo"))
    (tmp_path / "truth/tags.json").write_text('{"[cam]judo": ["[/x]"]}')
    (tmp_path / "results/[cam]judo/00001.png").unlink()
    (tmp_path / "[red]").mkdir()
    finished = command(
        *("score", *folders, "--protocol", "davis2017", "--lenient", "--json", str(tmp_path / "[red]/s.json"))
    )
    assert (finished.status, finished.err) == (0, "")
    assert re.search(r"^│ \[cam\]judo +│ ", finished.out, re.MULTILINE)
    assert re.search(r"^│ \[/x\] +│ ", finished.out, re.MULTILINE)
    assert "\n  [cam]judo 00001: missing frame: " in finished.out
    assert f"Wrote {tmp_path}/[red]/s.json\n" in finished.out


def test_classes_with_markup_are_printed_as_they_are(command, folders, tmp_path):
    (tmp_path / "classes.txt").write_text("[/x]\n[bold]cat\ndog\n")
    words = (f"{folder}/exact" for folder in folders)
    finished = command("score", *words, "--protocol", "semantic", "--classes", str(tmp_path / "classes.txt"))
    assert (finished.status, finished.err) == (0, "")
    for name in (r"\[/x\]", r"\[bold\]cat", "dog"):
        assert re.search(rf"^│ {name} +│ 100\.0 ", finished.out, re.MULTILINE)


def test_no_number_is_a_dash(command, folders, tmp_path):
    frames = [f"{frame:05}" for frame in range(5)]
    objects = {str(k): {"category": "dog", "frames": frames} for k in (1, 2)}
    meta = {"videos": {name: {"objects": objects} for name in ("exact", "lagging")}}
    (tmp_path / "truth/meta.json").write_text(json.dumps(meta))
    (tmp_path / "truth/unseen.json").write_text('["yeti"]')
    finished = command("score", *folders, "--protocol", "youtube_vos")
    assert (finished.status, finished.err) == (0, "")
    assert re.search(r"^│ all +│ - +│ - +│ - +│ 0 ", finished.out, re.MULTILINE)
    assert re.search(r"^G -, .*J_seen \d+\.\d, J_unseen -, ", finished.out, re.MULTILINE)
    assert "nan" not in finished.out.lower()


@pytest.mark.parametrize(("option", "says"), [("--json", "is a folder"), ("--csv", "is a file")])
def test_an_output_that_cannot_be_written_is_refused_before_scoring(command, folders, tmp_path, option, says):
    place = tmp_path / "there"
    place.mkdir() if option == "--json" else place.write_text("mine")
    truth, results = folders
    refused = command("score", truth, f"{results}/nowhere", "--protocol", "davis2017", option, str(place))
    assert refused.status == 2
    assert refused.err.startswith(f"error: {option} {place} {says}; expected the name of a ")
    assert refused.out == ""
    assert place.is_dir() or place.read_text() == "mine"


INTERRUPTED = """
import sys

import lightning_vos.commands.score as command
from lightning_vos.cli import main

score = command.score


def told(*arguments, progress, **options):
    def say(done, total):
        print("progress", flush=True)
        progress(done, total)

    return score(*arguments, progress=say, **options)


if __name__ == "__main__":
    command.score = told
    main()
"""


def test_an_interrupt_ends_all_processes_at_once(tmp_path):
    """While one is in the middle of a sequence that would take it half a minute, and another may just begin."""
    (tmp_path / "interrupted.py").write_text(INTERRUPTED)
    noise = np.random.default_rng(0).integers(0, 8, (1080, 1920)).astype(np.uint8)
    # The sequences of most frames are begun first: one that is soon done, two that are not.
    for name, frames, labels in (("a", 220, np.ones((4, 4), np.uint8)), ("b", 200, noise), ("c", 200, noise)):
        write_mask(tmp_path / f"{name}.png", labels)
        (tmp_path / "masks" / name).mkdir(parents=True)
        for frame in range(frames):
            (tmp_path / "masks" / name / f"{frame:05}.png").symlink_to(tmp_path / f"{name}.png")
    words = ("score", str(tmp_path), str(tmp_path), "--protocol", "davis2017", "--workers", "2")
    with subprocess.Popen(
        [sys.executable, str(tmp_path / "interrupted.py"), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout.readline() == "progress\n"
            start = time.monotonic()
            os.killpg(process.pid, signal.SIGINT)
            out, err = process.communicate(timeout=30)
            seconds = time.monotonic() - start
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert (process.returncode, out, err) == (130, "", "\ninterrupted\n")
    assert seconds < 4


@pytest.mark.parametrize(
    ("more", "part"),
    [
        ((), "--protocol"),
        (("--protocol", "davis2018"), "davis2018"),
        (("--protocol", "davis2017", "--workers", "0"), "workers is 0"),
        (("--protocol", "davis2017", "--frames", "all"), "frames is given, but davis2017 does not take it"),
        (("--protocol", "davis2017", "--classes", "voc"), "classes is given, but davis2017 does not take it"),
        (("--protocol", "davis2017", "--absent", "counted"), "absent is given, but davis2017 does not take it"),
        (("--protocol", "semantic", "--tags", "x.csv"), "tags is given, but semantic does not take it"),
        (("--protocol", "davis2017", "--unseen", "x.json"), "unseen is given"),
        (("--protocol", "davis2017", "--split", "test"), "There is no split 'test'"),
        (("--protocol", "youtube_vos"), "meta.json"),
        (("--protocol", "lvos"), "meta.json"),
        (("--protocol", "youtube_vis"), ""),
        (("--protocol", "semantic"), ""),
    ],
)
def test_wrong_words(command, folders, more, part):
    refused = command("score", *folders, *more)
    assert refused.status == 2
    assert "Traceback" not in refused.err
    assert part in refused.err


@pytest.mark.parametrize("place", [0, 1])
def test_folders_that_are_not_there_or_hold_no_masks(command, folders, tmp_path, place):
    (tmp_path / "empty").mkdir()
    for name, part in (("nowhere", "No such folder"), ("empty", "No masks")):
        words = list(folders)
        words[place] = str(tmp_path / name)
        refused = command("score", *words, "--protocol", "davis2017")
        assert refused.status == 2
        assert part in refused.err
        assert len(refused.err.splitlines()) <= 8


def test_benchmark_of_scoring(command, folders, tmp_path, monkeypatch):
    """Beside stand-ins for the tools of others: one that answers, one that just ends, as it does on trouble."""
    (tmp_path / "tools/vos_benchmark").mkdir(parents=True)
    (tmp_path / "tools/vos_benchmark/__init__.py").touch()
    (tmp_path / "tools/vos_benchmark/benchmark.py").write_text(
        "def benchmark(gt, pred, strict, num_processes, verbose):\n    return [12.5], [11.0], [14.0]\n"
    )
    (tmp_path / "tools/davis2017").mkdir()
    (tmp_path / "tools/davis2017/__init__.py").touch()
    (tmp_path / "tools/davis2017/evaluation.py").write_text(
        "import sys\nfrom pathlib import Path\n"
        "class DAVISEvaluation:\n"
        "    def __init__(self, davis_root, task, gt_set):\n"
        "        root = Path(davis_root)\n"
        "        names = (root / 'ImageSets/2017/val.txt').read_text().split()\n"
        "        assert all(list((root / 'Annotations/480p' / name).glob('*.png')) for name in names)\n"
        "        assert all(list((root / 'JPEGImages/480p' / name).glob('*.jpg')) for name in names)\n"
        "    def evaluate(self, path):\n"
        "        print('an index is too high')\n"
        "        sys.exit()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "tools"))
    monkeypatch.setattr(sys, "path", [str(tmp_path / "tools"), *sys.path])
    finished = command("benchmark", "scoring", *folders, "--repeats", "1")
    assert finished.status == 0, finished.err
    assert len(re.findall(r"│ lightning_vos +│ [12] ", finished.out)) == 2
    assert re.search(r"│ vos-benchmark .* 12\.50 │", finished.out)
    assert "davis2017-evaluation could not score" in finished.out.replace("\n", " ")
    assert "an index is too high" in finished.out
    assert "12 object-frames by davis2017" in finished.out
    shares = [
        float(share) for share in re.findall(r" (\d\.\d\d)[,\n]", finished.out[finished.out.index("Of the time") :])
    ]
    assert len(shares) == len(scoring._PARTS) + 1
    assert sum(shares) == pytest.approx(1, abs=0.05)


def test_benchmark_of_nothing(command, folders, tmp_path):
    for words, part in (
        ((folders[0], str(tmp_path / "nowhere")), "could not score"),
        ((*folders, "--repeats", "0"), "--repeats is 0"),
    ):
        refused = command("benchmark", "scoring", *words)
        assert refused.status == 2
        assert part in refused.err
