"""`score` and `benchmark scoring` as a person meets them."""

import csv
import json
import re
import sys

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
    assert "Left out: 4 times the first and the last frame do not count" in finished.out
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
    assert "Forgiven, 3 problems" in forgiven.out
    assert "exact 00001: missing frame" in forgiven.out


@pytest.mark.parametrize(
    ("more", "part"),
    [
        ((), "--protocol"),
        (("--protocol", "davis2018"), "davis2018"),
        (("--protocol", "davis2017", "--workers", "0"), "workers is 0"),
        (("--protocol", "davis2017", "--frames", "all"), "frames is 'all' with the protocol davis2017"),
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
