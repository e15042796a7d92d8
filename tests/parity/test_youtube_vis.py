"""The numbers of the official YouTube-VIS evaluator: AP and AR, AP by category, and IoU of every pair of tracks."""

import json
import math
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lightning_vos.evaluation.youtube_vis import TrackEvaluation, read_ground_truth, read_results, score_youtube_vis

HERE = Path(__file__).resolve()
REFERENCE = Path(os.environ.get("LIGHTNING_VOS_REFERENCE", HERE.parents[2].parent / "shared" / "reference"))
FOLDERS, ZIPS = REFERENCE / "ytvis_eval", REFERENCE / "davis_eval"

pytestmark = pytest.mark.skipif(
    not FOLDERS.is_dir() and not ZIPS.is_dir(), reason=f"no golden scores: neither {FOLDERS} nor {ZIPS} exists"
)


def cases() -> Iterator[tuple[Path, dict, dict, dict]]:
    """Each case: where it is, the twelve numbers, AP per category and IoU, as the official evaluator gave them."""
    for file in sorted(FOLDERS.glob("*/expected.json")):
        content = json.loads(file.read_text())
        yield pytest.param(
            file.parent, content["metrics"], content["ap_per_category"], content["iou"], id=file.parent.name
        )
    for file in sorted(ZIPS.glob("*.expected.json")):
        content = json.loads(file.read_text())
        if "ious" in content:
            name = file.name.removesuffix(".expected.json")
            yield pytest.param(
                ZIPS / f"{name}.zip", content["stats"], content["AP_per_category"], content["ious"], id=name
            )


def files_of(case: Path, folder: Path) -> tuple[Path, Path]:
    """The truth and the results of a case; those of a zip are left in it, the truth cannot be."""
    if case.is_dir():
        return case / "ground_truth.json", case / "results.json"
    with zipfile.ZipFile(case) as archive:
        (folder / "instances.json").write_bytes(archive.read("instances.json"))
    return folder, case


def fraction(percent: float) -> float:
    return -1 if math.isnan(percent) else percent / 100


@pytest.mark.parametrize(("case", "measures", "categories", "ious"), list(cases()))
def test_equals_the_official_evaluator(tmp_path, case, measures, categories, ious):
    ground_truth, results = files_of(case, tmp_path)
    scores = score_youtube_vis(ground_truth, results, strict=False)
    assert list(scores.summary) == list(measures)
    for name, value in measures.items():
        assert fraction(scores.summary[name]) == pytest.approx(value, rel=0, abs=1e-9), name

    truth = read_ground_truth(ground_truth)
    assert len(categories) == len(scores.categories) == len(truth.categories)
    for category, value in categories.items():
        found = scores.categories[truth.categories[int(category)]]["AP"]
        assert fraction(found) == pytest.approx(value, rel=0, abs=1e-9), category

    evaluation = TrackEvaluation(truth, read_results(results, truth).tracks)
    assert ious
    for key, matrix in ious.items():
        video, category = map(int, key.split("/"))
        found = evaluation.computeIoU(video, category)
        assert len(found) == len(matrix)
        np.testing.assert_allclose(found.tolist(), matrix, rtol=0, atol=1e-9)
