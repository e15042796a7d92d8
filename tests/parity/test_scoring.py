"""The scores of the official DAVIS 2017 tool, frame by frame to the last bit."""

import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lightning_vos.errors import MaskError, UserError
from lightning_vos.io.masks import read_mask
from lightning_vos.metrics.functional import davis2017_frames, davis2017_objects, object_scores
from lightning_vos.metrics.region_boundary import RegionBoundary

HERE = Path(__file__).resolve()
REFERENCE = (
    Path(os.environ.get("LIGHTNING_VOS_REFERENCE", HERE.parents[2].parent / "shared" / "reference")) / "davis_eval"
)
SUFFIX = ".expected.json"
STATISTICS = {"M": "", "R": "_recall", "D": "_decay"}
SUMMARY = {"J&F-Mean": "J&F", **{f"{m}-{word}": m + tail for m in "JF" for word, tail in
           {"Mean": "", "Recall": "_recall", "Decay": "_decay"}.items()}}  # fmt: skip

pytestmark = pytest.mark.skipif(not REFERENCE.is_dir(), reason=f"no golden scores: {REFERENCE} does not exist")


def expected(name: str) -> dict:
    return json.loads((REFERENCE / f"{name}{SUFFIX}").read_text())


def cases() -> Iterator[tuple[str, dict, dict | None]]:
    """Each result of the official tool: the archive, what it gave, and the decay that its 8-bit limits missed."""
    for file in sorted(REFERENCE.glob(f"*{SUFFIX}")):
        name = file.name.removesuffix(SUFFIX)
        content = expected(name)
        if "davis2017" in content:
            yield pytest.param(name, content["davis2017"], None, id=name)
        for sequence, case in content.items():
            outcome = case.get("davis2017") if isinstance(case, dict) else None
            if isinstance(outcome, dict) and outcome.get("ok") is True:
                yield pytest.param(name, outcome["result"], case.get("decay_without_uint8_cast"), id=sequence)


def refused() -> Iterator[tuple[str, str, dict]]:
    """Each sequence that the official tool could not score."""
    for file in sorted(REFERENCE.glob(f"*{SUFFIX}")):
        name = file.name.removesuffix(SUFFIX)
        for sequence, case in expected(name).items():
            outcome = case.get("davis2017") if isinstance(case, dict) else None
            if isinstance(outcome, dict) and outcome.get("ok") is False:
                yield pytest.param(name, sequence, case, id=sequence)


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """Folders of the archives, each unpacked once."""
    folder = tmp_path_factory.mktemp("davis_eval")

    def unpack(name: str) -> Path:
        if not (folder / name).is_dir():
            with zipfile.ZipFile(REFERENCE / f"{name}.zip") as archive:
                archive.extractall(folder / name)
        return folder / name

    return unpack


def read_sequence(folder: Path, sequence: str):
    """Give the objects, the names of the scored frames, and a reader of both label maps of one."""
    truths = sorted((folder / "gt" / sequence).glob("*.png"))
    first = read_mask(truths[0])
    scored = davis2017_frames(range(len(truths)))

    def read(index: int):
        return read_mask(folder / "pred" / sequence / truths[index].name, first.shape), read_mask(truths[index])

    return davis2017_objects(first), scored, [path.stem for path in truths], read


@pytest.mark.parametrize(("name", "result", "decay"), list(cases()))
def test_equals_official_davis2017(unpacked, name, result, decay):
    metric = RegionBoundary()
    numbers = {sequence: number for number, sequence in enumerate(sorted(result["per_frame"]))}
    assert numbers
    for sequence, frames in result["per_frame"].items():
        object_ids, scored, names, read = read_sequence(unpacked(name), sequence)
        assert [names[index] for index in scored] == frames["frames"]
        assert len(object_ids) == len(frames["J"]) == len(frames["F"])
        scores = []
        for index in scored:
            prediction, truth = read(index)
            scores.append(object_scores(prediction, truth, object_ids))
            metric.update(numbers[sequence], index, object_ids, prediction, truth)
        region, boundary = np.stack(scores, axis=-1)
        assert region.tolist() == frames["J"]
        assert boundary.tolist() == frames["F"]

    scores = metric.compute()
    assert len(scores.objects) == len(result["per_object"])
    for (number, object_id), ours in scores.objects.items():
        sequence = sorted(numbers)[number]
        for measure, theirs in result["per_object"][f"{sequence}_{object_id}"].items():
            wanted = theirs if decay is None else {**theirs, "D": decay[measure]}
            for letter, tail in STATISTICS.items():
                assert ours[measure + tail] == pytest.approx(wanted[letter], rel=0, abs=1e-12)
    for sequence, theirs in result["per_sequence"].items():
        for column, value in theirs.items():
            assert scores.sequences[numbers[sequence]][SUMMARY[column]] == pytest.approx(value, rel=0, abs=1e-12)
    for column, value in result["global"].items():
        if decay is not None and column.endswith("Decay"):
            value = decay[column[0]]  # such a case holds one object
        assert scores.summary[SUMMARY[column]] == pytest.approx(value, rel=0, abs=1e-12)


@pytest.mark.parametrize(("name", "sequence", "case"), list(refused()))
def test_what_the_official_tool_refuses(unpacked, name, sequence, case):
    """Where the official tool crashes, or says so and ends well, we raise a typed error or follow a stated policy."""
    folder = unpacked(name)
    truths = sorted((folder / "gt" / sequence).glob("*.png"))
    if len(truths) < 3:
        with pytest.raises(UserError, match=f"found {len(truths)}"):
            davis2017_frames(range(len(truths)))
        return
    object_ids, scored, names, read = read_sequence(folder, sequence)
    if case["vos_benchmark"]["ok"]:
        # Ids above the highest of the first frame are background, both in the truth and in the prediction.
        extra = 0
        for index in scored:
            prediction, truth = read(index)
            known = np.isin(prediction, object_ids)
            extra += np.count_nonzero(prediction[~known])
            with_extra = object_scores(prediction, truth, object_ids)
            without = object_scores(np.where(known, prediction, 0), truth, object_ids)
            np.testing.assert_array_equal(with_extra, without)
        assert extra
        return
    failures = []
    for index in scored:
        try:
            read(index)
        except MaskError as error:
            failures.append((names[index], str(error)))
    assert failures
    for frame, message in failures:
        assert str(folder / "pred" / sequence / frame) in message
        assert len(message.splitlines()) <= 8
