"""`score`: a folder, a zip or a file of results against the truth, as the benchmark's own tool would score it."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from lightning_vos.errors import ConfigError, DatasetNotFoundError
from lightning_vos.evaluation.holdout import is_held_out
from lightning_vos.evaluation.lists import Tagged, read_names, read_tags, read_unseen
from lightning_vos.evaluation.meta import not_as_expected, read_lvos_meta, read_youtube_vos_meta
from lightning_vos.evaluation.problems import Problem, ProblemKind, ScoringError
from lightning_vos.evaluation.protocols import Frames
from lightning_vos.evaluation.scores import LeftOut, ObjectFrames, Scores
from lightning_vos.evaluation.trees import LAYOUTS, MaskSequence, find_sequences
from lightning_vos.evaluation.videos import SequenceJob, SequenceOutcome, score_sequences
from lightning_vos.metrics.sequence import Column, Group, mean_of_objects, summarize, values

Protocol = Literal[
    "davis2016", "davis2017", "vos_benchmark", "youtube_vos", "lvos", "long_time_video", "youtube_vis", "semantic"
]

_FRAMES_A_PROCESS = 2000  # to start one takes as long as to score several hundred

_VARIANTS = {
    "davis2016": "J and F of the whole foreground; all annotated frames but the first and the last of a sequence.",
    "long_time_video": "J and F of the whole foreground; all annotated frames but the first and the last of a video.",
    "davis2017": "J and F of objects 1 to the highest id of the first mask; all annotated frames but the first and the "
    "last of a sequence.",
    "inner": "J and F of every object from the frame on in which truth or prediction first shows it; all annotated "
    "frames but the first and the last of a video.",
    "all": "J and F of every object from the frame on in which truth or prediction first shows it; all annotated "
    "frames.",
    "listed": "J and F of each object of meta.json in the frames listed for it but its first, which was given.",
    "lvos": "J and F of each object in every fifth frame of its range but the first and the last; V is the standard "
    "deviation of J&F over its frames.",
}
_GROUPED = " Means of seen and of unseen {0} apart; {1} is the mean of the four."
_UNGROUPED = " Plain mean over objects, for nothing says which {0} are unseen."


_Pairs = Mapping[str, tuple[MaskSequence, MaskSequence]]  # sequence -> truth and prediction


class _Work(NamedTuple):
    jobs: list[SequenceJob]
    variant: str  # what is scored, in a sentence or two
    problems: list[Problem]


def score(
    ground_truth: Path | str,
    prediction: Path | str,
    protocol: Protocol = "davis2017",
    *,
    strict: bool = True,
    workers: int | None = 1,
    split: str | None = None,
    frames: Frames | None = None,
    unseen: Path | str | None = None,
    tags: Path | str | None = None,
    classes: str | Sequence[str] = "voc",
    absent: Literal["counted", "skipped"] = "counted",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Scores:
    """Score results against the truth, as the benchmark's own tool does.

    Args:
        ground_truth: The truth: a folder or a zip of `<sequence>/<frame>.png`, or the folder of a dataset in its
            official layout; for `youtube_vis` its JSON; for `semantic` a folder of label maps or VOC2012 itself.
        prediction: The results in the same form, the folder of a run that holds `masks`, or a packed submission.
        protocol: Whose rules apply.
        strict: Whether anything wrong with the results is an error. If not, it is forgiven as `ProblemKind` says, and
            told in `Scores.problems`.
        workers: Processes that share the sequences; None: one for every core, as far as starting it pays. With more
            than one a script needs its `if __name__ == "__main__"`.
        split: Which sequences: the name of a list in the dataset's ImageSets (DAVIS: `val` if it is there), a file with
            one name a line, or `holdout_val` or `holdout_train` by the rule of `holdout`; all by default.
        frames: Which frames count, for `vos_benchmark` (`inner`, the default, or `all`) and `youtube_vos` (`listed`,
            the default, or those two).
        unseen: What is unseen: a file of category names (`youtube_vos`) or video names (`lvos`), as JSON or one a line,
            or the meta.json of the training set; `unseen.json` or `unseen_videos.txt` beside the truth by default.
        tags: Difficulties of sequences: `tags.json` as the synthetic sets have it (and by default, where it is), or a
            CSV with the columns sequence, tag and, if it likes, object.
        classes: For `semantic`: `voc`, `coco`, `ade20k`, or the names of the classes, or a file of them.
        absent: For `semantic`: whether a class that is predicted but nowhere in the truth counts in the mean, as 0.
        progress: Called with the number of frames that are done, and of all.

    Returns:
        The scores in percent, and what was left out.

    Raises:
        ScoringError: Something is wrong with the results, and `strict`; all of it is listed.
        UserError: The truth is not there, or broken, or an argument does not belong to the protocol.
    """
    ground_truth, prediction = Path(ground_truth), Path(prediction)
    _check_arguments(protocol, workers, frames, unseen)
    if protocol == "youtube_vis":
        from lightning_vos.evaluation.youtube_vis import score_youtube_vis

        return score_youtube_vis(ground_truth, prediction, strict=strict, split=split)
    if protocol == "semantic":
        from lightning_vos.evaluation.semantic import score_semantic

        return score_semantic(
            ground_truth,
            prediction,
            classes=classes,
            absent=absent,
            strict=strict,
            names=None if split is None else Path(split),
            workers=workers or 1,
        )
    root, truth = _truth(ground_truth, protocol)
    names = _names(root, truth, split, protocol)
    predicted = find_sequences(prediction)
    jobs, variant, problems = _work(protocol, root, {name: truth[name] for name in names}, predicted, frames, unseen)
    missing = [name for name in names if name not in predicted]
    reason = f"no masks of it in {prediction}"
    problems += [
        Problem(ProblemKind.MISSING_SEQUENCE, name, None, reason, "the sequence is left out") for name in missing
    ]
    left_out = [LeftOut(name, (), (), reason) for name in missing]
    left_out += [
        LeftOut(name, (), (), "predicted, but not in the split" if name in truth else "predicted, but without truth")
        for name in predicted
        if name not in names
    ]
    list_of_tags = _named_or_beside(tags, root / "tags.json")
    tagged = read_tags(list_of_tags) if list_of_tags else {}
    if tags is not None and not any(name in names for places in tagged.values() for name, _ in places):
        raise ConfigError(
            f"{tags} has tags for none of the {len(names)} sequences that are scored\n"
            f"  expected names such as {names[0]}"
        )
    total, done = sum(len(job.truth.frames) for job in jobs), 0

    def count(frames_done: int) -> None:
        nonlocal done
        done += frames_done
        progress(done, total)

    if workers is None:
        workers = min(os.cpu_count() or 1, max(total // _FRAMES_A_PROCESS, 1))
    outcomes = sorted(score_sequences(jobs, workers, count), key=lambda outcome: names.index(outcome.name))
    problems += [problem for outcome in outcomes for problem in outcome.problems]
    if strict and problems:
        raise ScoringError(
            f"{prediction} cannot be scored as it is by {protocol}:",
            problems,
            "Mend it, or have it forgiven and told in the report: strict=False, on the command line --lenient.",
        )
    left_out += [item for outcome in outcomes for item in outcome.left_out]
    return _scores(protocol, variant, outcomes, tagged, left_out, problems)


def _check_arguments(protocol: str, workers: int | None, frames: str | None, unseen: Path | str | None) -> None:
    if protocol not in get_args(Protocol):
        raise ConfigError(f"There is no protocol {protocol!r}.\n  expected one of {', '.join(get_args(Protocol))}")
    if workers is not None and workers < 1:
        raise ConfigError(f"workers is {workers}; expected 1 or more processes")
    of_protocol: dict[str, tuple[str, ...]] = {"vos_benchmark": ("inner", "all"), "youtube_vos": get_args(Frames)}
    choices = of_protocol.get(protocol, ())
    if frames is not None and frames not in choices:
        expected = (
            f"one of {', '.join(choices)}" if choices else "nothing: this protocol says itself which frames count"
        )
        raise ConfigError(f"frames is {frames!r} with the protocol {protocol}\n  expected {expected}")
    if unseen is not None and protocol not in ("youtube_vos", "lvos"):
        raise ConfigError(f"unseen is given, but {protocol} does not tell seen from unseen; youtube_vos and lvos do.")


def _truth(path: Path, protocol: Protocol) -> tuple[Path, dict[str, MaskSequence]]:
    """The folder with the lists of the dataset, and the true masks of its sequences."""
    # Some copies of DAVIS keep the masks of both years side by side.
    layouts = ("Annotations_2017/480p", *LAYOUTS) if protocol == "davis2017" else LAYOUTS
    truth = find_sequences(path, layouts)
    for folder in (path, path.parent, path.parent.parent):
        if any(folder.glob("*meta*.json")) or (folder / "ImageSets").is_dir() or (folder / "tags.json").is_file():
            return folder, truth
    return path, truth


def _names(root: Path, truth: Mapping[str, MaskSequence], split: str | None, protocol: Protocol) -> list[str]:
    """The sequences to score."""
    if split in ("holdout_val", "holdout_train"):
        names = [name for name in truth if is_held_out(name) == (split == "holdout_val")]
        if not names:
            raise DatasetNotFoundError(f"None of the {len(truth)} sequences of the truth is in {split}.")
        return names
    lists = root / "ImageSets" / ("2016" if protocol == "davis2016" else "2017")
    source = lists / f"{split or 'val'}.txt"
    if protocol == "long_time_video":
        source = root / "ImageSets" / f"{split or 'val'}.txt"
    if split is not None and not source.is_file():
        source = Path(split)
        if not source.is_file():
            there = sorted(path.stem for path in lists.glob("*.txt")) if lists.is_dir() else []
            raise DatasetNotFoundError(
                f"There is no split {split!r}: no such file, and no such list in {lists}\n"
                f"  lists there: {', '.join(there) or 'none'}\n"
                "Name one of them, a file with one sequence name a line, holdout_val or holdout_train."
            )
    if not source.is_file() or (split is None and protocol not in ("davis2016", "davis2017", "long_time_video")):
        return list(truth)
    names = read_names(source, "one sequence name a line")
    lacking = [name for name in names if name not in truth]
    if lacking or not names:
        raise DatasetNotFoundError(
            f"{source} names {len(names)} sequences, of {len(lacking)} of which there is no truth\n"
            f"  missing: {', '.join(lacking[:6])}{', ...' if len(lacking) > 6 else ''}\n"
            f"  found the masks of {', '.join(list(truth)[:6])}{', ...' if len(truth) > 6 else ''}\n"
            "Name the folder of the truth that belongs to the list, or another list: split, --split."
        )
    return names


def _work(
    protocol: Protocol,
    root: Path,
    truth: Mapping[str, MaskSequence],
    predicted: Mapping[str, MaskSequence],
    frames: Frames | None,
    unseen: Path | str | None,
) -> _Work:
    """What to score of the sequences that have results."""
    pairs = {name: (masks, predicted[name]) for name, masks in truth.items() if name in predicted}
    if protocol in ("davis2016", "davis2017", "long_time_video"):
        binary = protocol != "davis2017"
        jobs = [
            SequenceJob(name, *pair, rule="davis", listed={}, groups={}, binary=binary, void=not binary)
            for name, pair in pairs.items()
        ]
        return _Work(jobs, _VARIANTS[protocol], [])
    if protocol == "vos_benchmark":
        rule: Literal["all", "inner"] = "all" if frames == "all" else "inner"
        jobs = [SequenceJob(name, *pair, rule=rule, listed={}, groups={}) for name, pair in pairs.items()]
        return _Work(jobs, _VARIANTS[rule], [])
    if protocol == "youtube_vos":
        return _youtube_vos(root, pairs, frames or "listed", unseen)
    return _lvos(root, pairs, unseen)


def _youtube_vos(root: Path, pairs: _Pairs, frames: Frames, unseen: Path | str | None) -> _Work:
    meta_file = root / "meta.json"
    meta = read_youtube_vos_meta(meta_file)
    _require_videos(meta_file, meta, pairs)
    list_of_unseen = _named_or_beside(unseen, root / "unseen.json")
    is_unseen = read_unseen(list_of_unseen, "category") if list_of_unseen else None
    jobs = []
    for name, pair in pairs.items():
        listed = {object_id: entry.frames[1:] for object_id, entry in meta[name].items()}
        groups = {}
        if is_unseen is not None:
            for object_id, entry in meta[name].items():
                if entry.category is None:
                    raise not_as_expected(meta_file, f"no category of object {object_id} in video {name}")
                groups[object_id] = Group.UNSEEN if is_unseen(entry.category) else Group.SEEN
        jobs.append(SequenceJob(name, *pair, rule=frames, listed=listed, groups=groups))
    grouped = _GROUPED.format("categories", "G") if is_unseen else _UNGROUPED.format("categories")
    return _Work(jobs, _VARIANTS[frames] + grouped, [])


def _lvos(root: Path, pairs: _Pairs, unseen: Path | str | None) -> _Work:
    # Version 1 has a second meta file with expressions, version 2 one with attributes.
    files = [p for p in sorted(root.glob("*_meta.json")) if not p.stem.endswith("expression_meta")]
    meta_file = files[0] if files else root / "valid_meta.json"
    meta = read_lvos_meta(meta_file)
    _require_videos(meta_file, meta, pairs)
    list_of_unseen = _named_or_beside(unseen, root / "unseen_videos.txt")
    is_unseen = read_unseen(list_of_unseen, "video") if list_of_unseen else None
    jobs, problems = [], []
    for name, pair in pairs.items():
        by_number = {int(frame): frame for frame in pair[0].frames if frame.isdecimal()}
        listed, groups = {}, {}
        for object_id, entry in meta[name].items():
            if len(entry.scored) < entry.frame_nums - 2:
                reason = (
                    f"{meta_file.name} counts {entry.frame_nums} frames of object {object_id},"
                    f" its range holds {len(entry.scored)}"
                )
                remedy = "the frames of the range are scored; the official tool takes 0 for the others"
                problems.append(Problem(ProblemKind.WRONG_FRAME_LIST, name, None, reason, remedy))
            listed[object_id] = [by_number.get(number, f"{number:08}") for number in entry.scored]
            if is_unseen is not None:
                groups[object_id] = Group.UNSEEN if is_unseen(name) else Group.SEEN
        jobs.append(SequenceJob(name, *pair, rule="listed", listed=listed, groups=groups))
    grouped = (
        _GROUPED.format("videos", "J&F") + " (LVOS v2)" if is_unseen else _UNGROUPED.format("videos") + " (LVOS v1)"
    )
    return _Work(jobs, _VARIANTS["lvos"] + grouped, problems)


def _require_videos(file: Path, meta: Collection[str], names: Iterable[str]) -> None:
    for name in names:
        if name not in meta:
            raise not_as_expected(file, f"no objects, by their ids, of video {name}")


def _named_or_beside(named: Path | str | None, beside: Path) -> Path | None:
    """The file that was named, or the one beside the truth if it is there."""
    if named is not None:
        return Path(named)
    return beside if beside.is_file() else None


def _scores(
    protocol: Protocol,
    variant: str,
    outcomes: Sequence[SequenceOutcome],
    tagged: Tagged,
    left_out: Sequence[LeftOut],
    problems: Sequence[Problem],
) -> Scores:
    averaged = summarize({outcome.name: outcome.rows for outcome in outcomes})
    frames = {}
    for outcome in outcomes:
        for object_id in sorted(set(outcome.rows[:, Column.OBJECT].tolist())):
            rows = outcome.rows[outcome.rows[:, Column.OBJECT] == object_id]
            names = tuple(outcome.frames[position] for position in rows[:, Column.FRAME].tolist())
            frames[outcome.name, object_id] = ObjectFrames(
                names, values(rows, Column.REGION), values(rows, Column.BOUNDARY)
            )
    tags = {
        tag: {"objects": len(members), **mean_of_objects(members)}
        for tag, places in sorted(tagged.items())
        if (members := [row for (name, k), row in averaged.objects.items() if {(name, k), (name, None)} & set(places)])
    }

    summary = averaged.summary
    if protocol == "youtube_vos" and "J_seen" in summary:
        summary = {"G": summary["J&F"], **summary}
    for group in ("seen", "unseen"):
        if f"J_{group}" in summary and math.isnan(summary[f"J_{group}"]):
            left_out = [
                *left_out,
                LeftOut("", (), (), f"nothing that was scored is {group}, so the mean is none either"),
            ]
    return Scores(
        protocol=protocol,
        variant=variant,
        summary=summary,
        sequences=averaged.sequences,
        objects=averaged.objects,
        frames=frames,
        tags=tags,
        left_out=left_out,
        problems=problems,
    )
