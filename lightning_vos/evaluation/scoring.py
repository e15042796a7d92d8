"""`score`: a folder, a zip or a file of results against the truth, as the benchmark's own tool would score it."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
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
    left_out: list[LeftOut]


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
    classes: str | Sequence[str] | None = None,
    absent: Literal["counted", "skipped"] | None = None,
    sweep: Sequence[float] | None = None,
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
        sweep: For `semantic`: thresholds of the background to try with the class maps that a run has kept.
        progress: Called with the number of frames that are done, and of all.

    Returns:
        The scores in percent, and what was left out.

    Raises:
        ScoringError: Something is wrong with the results, and `strict`; all of it is listed.
        UserError: The truth is not there, or broken, or an argument does not belong to the protocol.
    """
    ground_truth, prediction = Path(ground_truth), Path(prediction)
    if protocol not in get_args(Protocol):
        raise ConfigError(f"There is no protocol {protocol!r}.\n  expected one of {', '.join(get_args(Protocol))}")
    _check_arguments(
        protocol, workers, frames=frames, unseen=unseen, tags=tags, classes=classes, absent=absent, sweep=sweep
    )
    if protocol == "youtube_vis":
        from lightning_vos.evaluation.youtube_vis import score_youtube_vis

        return score_youtube_vis(ground_truth, prediction, strict=strict, split=split)
    if protocol == "semantic":
        from lightning_vos.evaluation.semantic import score_semantic

        return score_semantic(
            ground_truth,
            prediction,
            classes="voc" if classes is None else classes,
            absent="counted" if absent is None else absent,
            strict=strict,
            split=split,
            sweep=sweep,
            workers=workers or 1,
        )
    truth, folders = _truth(ground_truth, protocol)
    names, which = _names(folders, truth, split, protocol)
    predicted = find_sequences(prediction)
    problems = _missing(names, predicted, ground_truth, prediction)
    pairs = {name: (truth[name], predicted[name]) for name in names if name in predicted}
    jobs, variant, left_out = _work(protocol, folders, pairs, frames, unseen)
    left_out += [LeftOut(problem.sequence, (), (), problem.reason) for problem in problems]
    left_out += [
        LeftOut(name, (), (), "predicted, but not in the split" if name in truth else "predicted, but without truth")
        for name in predicted
        if name not in names
    ]
    tagged = _tagged(tags, folders, names)
    outcomes = sorted(_outcomes(jobs, workers, progress), key=lambda outcome: names.index(outcome.name))
    problems += [problem for outcome in outcomes for problem in outcome.problems]
    if strict and problems:
        raise ScoringError(
            f"{prediction} cannot be scored as it is against {ground_truth} by {protocol}:",
            problems,
            "Mend it, or have it forgiven and told in the report: strict=False, on the command line --lenient.",
        )
    left_out += [item for outcome in outcomes for item in outcome.left_out]
    return _scores(protocol, variant + which, outcomes, tagged, left_out, problems)


_TAKEN = {
    "frames": ("vos_benchmark", "youtube_vos"),
    "unseen": ("youtube_vos", "lvos"),
    "tags": ("davis2016", "davis2017", "vos_benchmark", "youtube_vos", "lvos", "long_time_video"),
    "classes": ("semantic",),
    "absent": ("semantic",),
    "sweep": ("semantic",),
}
"""Argument -> the protocols that take it."""


def _check_arguments(protocol: str, workers: int | None, **given: object) -> None:
    if workers is not None and workers < 1:
        raise ConfigError(f"workers is {workers}; expected 1 or more processes")
    for name, value in given.items():
        if value is not None and protocol not in _TAKEN[name]:
            raise ConfigError(f"{name} is given, but {protocol} does not take it\n  {', '.join(_TAKEN[name])} would")
    frames = given["frames"]
    choices = ("inner", "all") if protocol == "vos_benchmark" else get_args(Frames)
    if frames is not None and frames not in choices:
        raise ConfigError(f"frames is {frames!r} with the protocol {protocol}\n  expected one of {', '.join(choices)}")


def _truth(path: Path, protocol: Protocol) -> tuple[dict[str, MaskSequence], list[Path]]:
    """The true masks of all sequences, and the folders in which the dataset may have its lists, the nearest first."""
    # Some copies of DAVIS keep the masks of both years side by side.
    layouts = ("Annotations_2017/480p", *LAYOUTS) if protocol == "davis2017" else LAYOUTS
    truth = find_sequences(path, layouts)
    source = next(iter(truth.values())).source
    folder = source.parent.resolve()
    # The lists lie beside a zip, or at most two folders above those of the sequences: DAVIS/Annotations/480p.
    return truth, [folder] if source.is_file() else [folder, *folder.parents][:3]


def _beside(folders: Sequence[Path], name: str) -> Path | None:
    """The first file of that name beside the truth."""
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def _names(
    folders: Sequence[Path], truth: Mapping[str, MaskSequence], split: str | None, protocol: Protocol
) -> tuple[list[str], str]:
    """The sequences to score, and in words which they are."""
    if split in ("holdout_val", "holdout_train"):
        names = [name for name in truth if is_held_out(name) == (split == "holdout_val")]
        if not names:
            raise DatasetNotFoundError(f"None of the {len(truth)} sequences of the truth is in {split}.")
        return names, f" {len(names)} of {len(truth)} sequences: {split}."
    year = {"davis2016": "2016/", "davis2017": "2017/", "vos_benchmark": "2017/"}.get(protocol, "")
    source = None
    if split is not None or protocol in ("davis2016", "davis2017", "long_time_video"):
        source = _beside(folders, f"ImageSets/{year}{split or 'val'}.txt")
    if split is not None and source is None:
        source = Path(split)
        if not source.is_file():
            lists = [file for folder in folders for file in folder.glob(f"ImageSets/{year}*.txt")]
            raise DatasetNotFoundError(
                f"There is no split {split!r}: no such file, and no such list beside the truth\n"
                f"  lists there: {', '.join(sorted(file.stem for file in lists)) or 'none'}\n"
                "Name one of them, a file with one sequence name a line, holdout_val or holdout_train."
            )
    if source is None:
        return list(truth), f" {len(truth)} sequence{'s' if len(truth) > 1 else ''}."
    names = read_names(source, "one sequence name a line")
    lacking = [name for name in names if name not in truth]
    if lacking or not names:
        raise DatasetNotFoundError(
            f"{source} names {len(names)} sequences, of {len(lacking)} of which there is no truth\n"
            f"  missing: {', '.join(lacking[:6])}{', ...' if len(lacking) > 6 else ''}\n"
            f"  found the masks of {', '.join(list(truth)[:6])}{', ...' if len(truth) > 6 else ''}\n"
            "Name the folder of the truth that belongs to the list, or another list: split, --split."
        )
    return names, f" {len(names)} of {len(truth)} sequences: {source}."


def _missing(names: Sequence[str], predicted: Collection[str], ground_truth: Path, prediction: Path) -> list[Problem]:
    """The sequences without results, unless that is all of them."""
    reason, remedy = f"no masks of it in {prediction}", "the sequence is left out"
    problems = [
        Problem(ProblemKind.MISSING_SEQUENCE, name, None, reason, remedy) for name in names if name not in predicted
    ]
    if len(problems) == len(names):
        found = ", ".join(list(predicted)[:6]) + (", ..." if len(predicted) > 6 else "")
        raise ScoringError(
            f"{prediction} holds no sequence of the truth, {ground_truth}: it has {found}",
            problems,
            "Name the results that belong to this truth.",
        )
    return problems


def _tagged(tags: Path | str | None, folders: Sequence[Path], names: Sequence[str]) -> Tagged:
    """The difficulties that a list names, the given one or one beside the truth."""
    list_of_tags = Path(tags) if tags is not None else _beside(folders, "tags.json")
    tagged = read_tags(list_of_tags) if list_of_tags else {}
    if tags is not None and not any(name in names for places in tagged.values() for name, _ in places):
        raise ConfigError(
            f"{tags} has tags for none of the {len(names)} sequences that are scored\n"
            f"  expected names such as {names[0]}"
        )
    return tagged


def _outcomes(
    jobs: Sequence[SequenceJob], workers: int | None, progress: Callable[[int, int], None]
) -> Iterator[SequenceOutcome]:
    """What each job gives, as they end."""
    total, done = sum(len(job.truth.frames) for job in jobs), 0

    def count(frames_done: int) -> None:
        nonlocal done
        done += frames_done
        progress(done, total)

    if workers is None:
        workers = min(os.cpu_count() or 1, max(total // _FRAMES_A_PROCESS, 1))
    return score_sequences(jobs, workers, count)


def _work(
    protocol: Protocol, folders: Sequence[Path], pairs: _Pairs, frames: Frames | None, unseen: Path | str | None
) -> _Work:
    """What to score of the sequences that have results."""
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
        return _youtube_vos(folders, pairs, frames or "listed", unseen)
    return _lvos(folders, pairs, unseen)


def _youtube_vos(folders: Sequence[Path], pairs: _Pairs, frames: Frames, unseen: Path | str | None) -> _Work:
    meta_file = _beside(folders, "meta.json") or folders[-1] / "meta.json"
    meta = read_youtube_vos_meta(meta_file)
    _require_videos(meta_file, meta, pairs)
    list_of_unseen = Path(unseen) if unseen is not None else _beside(folders, "unseen.json")
    is_unseen = read_unseen(list_of_unseen, "category") if list_of_unseen else None
    jobs = []
    for name, pair in pairs.items():
        _require_masks(name, pair[0], {frame for entry in meta[name].values() for frame in entry.frames}, meta_file)
        groups = {}
        if is_unseen is not None:
            for object_id, entry in meta[name].items():
                if entry.category is None:
                    raise not_as_expected(meta_file, f"no category of object {object_id} in video {name}")
                groups[object_id] = Group.UNSEEN if is_unseen(entry.category) else Group.SEEN
        listed = {object_id: entry.frames[1:] for object_id, entry in meta[name].items()}
        jobs.append(SequenceJob(name, *pair, rule=frames, listed=listed, groups=groups))
    _require_groups(jobs, unseen)
    grouped = _GROUPED.format("categories", "G") if is_unseen else _UNGROUPED.format("categories")
    return _Work(jobs, _VARIANTS[frames] + grouped, [])


def _lvos(folders: Sequence[Path], pairs: _Pairs, unseen: Path | str | None) -> _Work:
    # Version 1 has a second meta file with expressions, version 2 one with attributes.
    found = (file for folder in folders for file in sorted(folder.glob("*_meta.json")))
    meta_file = next(
        (file for file in found if not file.stem.endswith("expression_meta")), folders[-1] / "valid_meta.json"
    )
    meta = read_lvos_meta(meta_file)
    _require_videos(meta_file, meta, pairs)
    list_of_unseen = Path(unseen) if unseen is not None else _beside(folders, "unseen_videos.txt")
    is_unseen = read_unseen(list_of_unseen, "video") if list_of_unseen else None
    jobs, left_out = [], []
    for name, pair in pairs.items():
        by_number = {int(frame): frame for frame in pair[0].frames if frame.isdecimal()}
        listed, groups = {}, {}
        for object_id, entry in meta[name].items():
            listed[object_id] = [by_number.get(number, f"{number:08}") for number in entry.scored]
            lacking = entry.frame_nums - 2 - len(entry.scored)
            if lacking > 0:
                reason = (
                    f"frames that {meta_file.name} counts beyond the object's range; the official tool takes 0 for each"
                )
                left_out.append(LeftOut(name, (), (object_id,), f"{lacking} {reason}"))
            if is_unseen is not None:
                groups[object_id] = Group.UNSEEN if is_unseen(name) else Group.SEEN
        _require_masks(name, pair[0], {frame for frames in listed.values() for frame in frames}, meta_file)
        jobs.append(SequenceJob(name, *pair, rule="listed", listed=listed, groups=groups))
    _require_groups(jobs, unseen)
    grouped = (
        _GROUPED.format("videos", "J&F") + " (LVOS v2)" if is_unseen else _UNGROUPED.format("videos") + " (LVOS v1)"
    )
    return _Work(jobs, _VARIANTS["lvos"] + grouped, left_out)


def _require_masks(name: str, truth: MaskSequence, listed: Set[str], meta_file: Path) -> None:
    """Refuse a truth that is none: of splits with hidden truth only masks of first appearances are public."""
    missing = sorted(listed - truth.frames.keys())
    if missing:
        raise DatasetNotFoundError(
            f"The truth of {name} is not complete: {truth.source}\n"
            f"  found {len(truth.frames)} masks, but none of {', '.join(missing[:3])}\n"
            f"  expected one for each of the {len(listed)} frames that {meta_file} lists for its objects\n"
            "Where only masks of first appearances are public (YouTube-VOS valid) the server alone can score: see\n"
            "lightning_vos submission. Score training videos that were held out instead: --split holdout_val."
        )


def _require_groups(jobs: Sequence[SequenceJob], unseen: Path | str | None) -> None:
    groups = {group for job in jobs for group in job.groups.values()}
    if unseen is not None and len(groups) == 1:
        raise ConfigError(
            f"{unseen} makes everything that is scored {next(iter(groups)).name.lower()}, so there are no two groups.\n"
            "Name a list of what is unseen in this truth, or none for plain means."
        )


def _require_videos(file: Path, meta: Collection[str], names: Iterable[str]) -> None:
    for name in names:
        if name not in meta:
            raise not_as_expected(file, f"no objects, by their ids, of video {name}")


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
    tags = {}
    for tag, places in sorted(tagged.items()):
        members = [row for (name, k), row in averaged.objects.items() if (name, k) in places or (name, None) in places]
        if members:
            tags[tag] = {"objects": len(members), **mean_of_objects(members)}
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
