"""mIoU on label maps of PASCAL VOC that nobody drew for a test."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lightning_vos.evaluation.semantic import CLASS_SETS, score_semantic
from lightning_vos.io.masks import write_mask

HERE = Path(__file__).resolve()
REFERENCE = Path(os.environ.get("LIGHTNING_VOS_REFERENCE", HERE.parents[2].parent / "shared" / "reference"))
DEVKIT = REFERENCE.parent / "data" / "real" / "VOCdevkit"
TRUTH = DEVKIT / "VOC2012" / "SegmentationClass"

pytestmark = pytest.mark.skipif(not TRUTH.is_dir(), reason=f"no VOC label maps: {TRUTH} does not exist")


def listed() -> list[str]:
    return (DEVKIT / "VOC2012" / "ImageSets" / "Segmentation" / "val.txt").read_text().split()


def distorted(labels: np.ndarray) -> np.ndarray:
    """A prediction with errors of every kind: moved, one class taken for another, nothing left to ignore."""
    moved = np.roll(labels, (7, -11), axis=(0, 1))
    classes = np.unique(moved[moved != 255])
    moved[moved == 255] = classes[-1]
    moved[:, ::13] = (moved[:, ::13] + 1) % 21
    return moved


def test_equals_a_plain_confusion_matrix(tmp_path):
    matrix = np.zeros((21, 21))
    for name in listed():
        truth = np.array(Image.open(TRUTH / f"{name}.png"))
        prediction = distorted(truth)
        write_mask(tmp_path / f"{name}.png", prediction)
        for true in range(21):
            for predicted in range(21):
                matrix[true, predicted] += np.count_nonzero((truth == true) & (prediction == predicted))
    assert np.count_nonzero(matrix) > 21
    union = matrix.sum(axis=0) + matrix.sum(axis=1) - matrix.diagonal()
    wanted = 100 * matrix.diagonal()[union > 0] / union[union > 0]
    scores = score_semantic(DEVKIT, tmp_path)
    found = np.array([scores.categories[name]["IoU"] for name in CLASS_SETS["voc"].names])
    np.testing.assert_allclose(found[union > 0], wanted, rtol=1e-12)
    assert np.isnan(found[union == 0]).all()
    assert scores.summary["mIoU"] == pytest.approx(wanted.mean(), rel=1e-12)
    assert scores.summary["pixel_accuracy"] == pytest.approx(100 * matrix.trace() / matrix.sum(), rel=1e-12)


def test_the_truth_scores_100():
    summary = score_semantic(DEVKIT, TRUTH).summary
    assert summary == {"mIoU": 100, "pixel_accuracy": 100, "mean_accuracy": 100}
