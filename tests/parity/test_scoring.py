"""The scores of the official tools: frames to the last bit, means to 1e-12."""

import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lightning_vos.evaluation import ProblemKind, ScoringError, score

HERE = Path(__file__).resolve()
REFERENCE = (
    Path(os.environ.get("LIGHTNING_VOS_REFERENCE", HERE.parents[2].parent / "shared" / "reference")) / "davis_eval"
)
SUFFIX = ".expected.json"
VOS_BENCHMARK = {
    "vos_benchmark": "inner",
    "vos_benchmark_all_frames": "all",
    "vos_benchmark_skip_first_and_last": "inner",
}
STATISTICS = {"M": "", "R": "_recall", "D": "_decay"}
SUMMARY = {"J&F-Mean": "J&F", **{f"{m}-{word}": m + tail for m in "JF" for word, tail in
           {"Mean": "", "Recall": "_recall", "Decay": "_decay"}.items()}}  # fmt: skip
KINDS = {  # what is wrong with a sequence that no tool scores, by what the notes of the cases call it
    "missing_frame": ProblemKind.MISSING_FRAME,
    "size_mismatch": ProblemKind.WRONG_SIZE,
    "rgb": ProblemKind.NOT_INDEXED,
}

pytestmark = pytest.mark.skipif(not REFERENCE.is_dir(), reason=f"no golden scores: {REFERENCE} does not exist")


def contents() -> Iterator[tuple[str, dict]]:
    for file in sorted(REFERENCE.glob(f"*{SUFFIX}")):
        yield file.name.removesuffix(SUFFIX), json.loads(file.read_text())


def sets() -> Iterator:
    """Archive, its one sequence (or all), tool, what it said, the decay that its 8-bit limits missed, vos-benchmark."""
    for name, content in contents():
        for tool in ("davis2017", *VOS_BENCHMARK):
            if "scores" not in content.get(tool, {}) and tool in content:
                yield pytest.param(name, None, tool, content[tool], None, {}, id=f"{name}-{tool}")
            for sequence, case in content.items():
                outcome = case.get(tool) if isinstance(case, dict) and "note" in case else None
                if isinstance(outcome, dict):
                    decay = case.get("decay_without_uint8_cast")
                    other = case["vos_benchmark"]
                    yield pytest.param(name, sequence, tool, outcome, decay, other, id=f"{sequence}-{tool}")


def of_kind(key: str) -> list:
    return [pytest.param(name, content, id=name) for name, content in contents() if key in content]


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


def alone(folder: Path, sequence: str | None, to: Path) -> tuple[Path, Path]:
    """Truth and prediction of all sequences, or folders that hold just one."""
    if sequence is None:
        return folder / "gt", folder / "pred"
    for side in ("gt", "pred"):
        (to / side).mkdir()
        (to / side / sequence).symlink_to(folder / side / sequence)
    return to / "gt", to / "pred"


def exact(value: float) -> object:
    return pytest.approx(value, rel=0, abs=1e-12, nan_ok=True)


def percent(value: float | str) -> object:
    return pytest.approx(float(value), rel=0, abs=1e-10, nan_ok=True)


@pytest.mark.parametrize(("name", "sequence", "tool", "outcome", "decay", "other"), list(sets()))
def test_davis2017_and_vos_benchmark(unpacked, tmp_path, name, sequence, tool, outcome, decay, other):
    truth, prediction = alone(unpacked(name), sequence, tmp_path)
    options = {"protocol": "davis2017"} if tool == "davis2017" else {
        "protocol": "vos_benchmark", "frames": VOS_BENCHMARK[tool]}  # fmt: skip
    if outcome.get("ok", True) is False:
        refused(truth, prediction, sequence, options, other)
        return
    result = outcome.get("result", outcome)
    scores = score(truth, prediction, strict=False, **options)
    if tool == "davis2017":
        equals_davis2017(scores, result, decay)
    else:
        equals_vos_benchmark(scores, result)
    if scores.problems:
        with pytest.raises(ScoringError) as error:
            score(truth, prediction, **options)
        assert set(error.value.problems) == set(scores.problems)
    else:
        assert score(truth, prediction, **options).summary == pytest.approx(scores.summary, rel=0, abs=0, nan_ok=True)


def refused(truth: Path, prediction: Path, sequence: str, options: dict, other: dict) -> None:
    """Where a tool crashes, or says so and ends well, we say what is wrong with which frame, and can forgive it."""
    with pytest.raises(ScoringError) as error:
        score(truth, prediction, **options)
    problems = error.value.problems
    assert problems
    assert {problem.sequence for problem in problems} == {sequence}
    kinds = {problem.kind for problem in problems}
    assert kinds >= {kind for word, kind in KINDS.items() if word in sequence}
    for problem in problems:
        assert problem.kind == ProblemKind.TOO_FEW_FRAMES or problem.frame in str(error.value) or len(problems) > 6
    scores = score(truth, prediction, strict=False, **options)
    assert tuple(scores.problems) == problems
    if kinds == {ProblemKind.EXTRA_OBJECT}:  # ignoring them is what vos-benchmark does
        assert other["ok"]
        equal_objects(scores, other["result"])


def equals_davis2017(scores, result: dict, decay: dict | None) -> None:
    assert len(scores.objects) == len(result["per_object"])
    for sequence, frames in result["per_frame"].items():
        for object_id, (region, boundary) in enumerate(zip(frames["J"], frames["F"], strict=True), start=1):
            ours = scores.frames[sequence, object_id]
            assert list(ours.names) == frames["frames"]
            assert (ours.region.tolist(), ours.boundary.tolist()) == (region, boundary)
    for (sequence, object_id), ours in scores.objects.items():
        for measure, theirs in result["per_object"][f"{sequence}_{object_id}"].items():
            wanted = theirs if decay is None else {**theirs, "D": decay[measure]}
            for letter, tail in STATISTICS.items():
                assert ours[measure + tail] / 100 == exact(wanted[letter])
    for sequence, theirs in result["per_sequence"].items():
        for column, value in theirs.items():
            assert scores.sequences[sequence][SUMMARY[column]] / 100 == exact(value)
    for column, value in result["global"].items():
        if decay is not None and column.endswith("Decay"):
            value = decay[column[0]]  # such a case holds one object
        assert scores.summary[SUMMARY[column]] / 100 == exact(value)


def equals_vos_benchmark(scores, result: dict) -> None:
    equal_objects(scores, result)
    for column, value in result.get("global", {}).items():
        assert scores.summary[column] == percent(value)


def equal_objects(scores, result: dict) -> None:
    assert {f"{sequence}/{object_id}" for sequence, object_id in scores.objects} == set(result["per_object"])
    for (sequence, object_id), ours in scores.objects.items():
        for column, value in result["per_object"][f"{sequence}/{object_id}"].items():
            assert ours[column] == percent(value)
        if f"{sequence}/{object_id}" in result["per_frame"]:
            theirs = result["per_frame"][f"{sequence}/{object_id}"]
            frames = theirs["frames"]
        else:
            theirs = result["per_frame"][sequence]["objects"][str(object_id)]
            frames = result["per_frame"][sequence]["frames"][-len(theirs["J"]) :]
        assert list(scores.frames[sequence, object_id].names) == frames
        assert scores.frames[sequence, object_id].region.tolist() == theirs["J"]
        assert scores.frames[sequence, object_id].boundary.tolist() == theirs["F"]


@pytest.mark.parametrize(("name", "content"), of_kind("by_meta_frames"))
def test_youtube_vos(unpacked, name, content):
    frames = {"by_meta_frames": "listed", **VOS_BENCHMARK}
    assert content
    for variant, result in content.items():
        scores = score(unpacked(name) / "gt", unpacked(name) / "pred", "youtube_vos", frames=frames[variant])
        equal_objects(scores, result)
        for column, value in result["scores"].items():
            assert scores.summary[column] == percent(value)


def lvos_sets() -> list:
    return [
        pytest.param(name, content, id=name) for name, content in contents() if "per_object_recall_decay" in content
    ]


@pytest.mark.parametrize(("name", "content"), lvos_sets())
def test_lvos(unpacked, name, content):
    scores = score(unpacked(name) / "gt", unpacked(name) / "pred", "lvos")
    meta = json.loads((unpacked(name) / "gt" / "valid_meta.json").read_text())["videos"]
    rows = [(video, int(k), f"{video}_{n}") for video, entry in meta.items() for n, k in enumerate(entry["objects"], 1)]
    assert len(rows) == len(content["per_object"]) == len(scores.objects)
    for video, object_id, row in rows:
        ours = scores.objects[video, object_id]
        for column, value in content["per_object"][row].items():
            assert ours[column] / 100 == exact(value)
        assert ours["J_recall"] / 100 == exact(content["per_object_recall_decay"][row]["J-Recall"])
        theirs = content["per_frame"][video][str(object_id)]
        assert scores.frames[video, object_id].region.tolist() == theirs["J"]
        assert scores.frames[video, object_id].boundary.tolist() == theirs["F"]
    for column, value in content["global"].items():
        name = column.removesuffix("-Mean").replace("-", "_")
        assert scores.summary[name] / 100 == exact(value)
