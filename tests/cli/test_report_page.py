"""The page about runs: what it reads, what it shows, and what it says where something is missing."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco
from written_runs import pixels_of, write_classified, write_config, write_followed, write_found, write_logged

from lightning_vos.commands.report_data import open_all, open_data
from lightning_vos.figures.gallery import collect, worst_frames
from lightning_vos.figures.page import Gallery, Section, Table, page_sections, render_page
from lightning_vos.figures.run_results import Curve, Run, read_run, read_runs
from lightning_vos.figures.scenes import CONFUSED, MISSED, RIGHT, TOO_MUCH, Scene, data_uri, difference
from lightning_vos.figures.svg import Line, chart, sparkline, strip

CLASSES = ("background", "class-01", "class-02", "class-03", "class-04")
MINUS = "\N{MINUS SIGN}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of followed objects, `a` which is right and `b` whose masks are moved; `found`; `classified`."""
    folder = write_followed(tmp_path_factory.mktemp("runs"), {"a": 0, "b": 5})
    write_found(folder / "found", 2)
    write_classified(folder / "classified", CLASSES)
    return folder


@pytest.fixture(scope="module")
def pair(folder: Path) -> list[Run]:
    return read_runs([folder / "a", folder / "b"])


def refused(finished: Any, *parts: str) -> None:
    assert finished.status == 2, finished.err
    message = finished.err[finished.err.index("error: ") :]
    assert len(message.splitlines()) <= 8
    assert all(part in message for part in parts), message


def section(sections: list[Section], name: str) -> Section:
    return next(one for one in sections if one.name == name)


def texts(table: Table) -> list[list[str]]:
    return [[cell.text for cell in row] for row in table.rows]


def run_of(name: str, **parts: Any) -> Run:
    return Run(
        **{"name": name, "folder": Path(name), "config": {}, "environment": {}, "measures": {}, "curves": {}} | parts
    )


def frames_of(sequence: str, *values: float) -> dict[tuple[str, str], dict[str, Curve]]:
    curve = Curve([f"{number:05}" for number in range(len(values))], np.array(values))
    return {(sequence, "1"): {"J": curve, "F": curve}}


def test_a_run_is_read_with_all_its_tables(folder, pair):
    a, b = pair
    assert (a.name, b.name) == ("a", "b")
    assert a.measures["test/J&F"] == 100
    assert b.measures["test/FPS"] == 25
    assert list(a.curves["train/loss"].places) == ["0", "10", "20", "30"]
    assert "test/J&F" not in a.curves
    assert list(a.sequences) == [f"synthetic-val-00{number}" for number in range(3)]
    assert a.settings["model.network.channels"] == "64"
    curve = b.by_frame("synthetic-val-000")
    rows = [of["J"].values + of["F"].values for (name, _), of in b.frames.items() if name == "synthetic-val-000"]
    assert curve is not None
    assert np.allclose(curve.values, np.mean(rows, axis=0) / 2)
    assert list(curve.places) == ["00001", "00002", "00003", "00004"]


def test_a_test_leads_to_the_run_that_was_trained(tmp_path, monkeypatch):
    write_logged(tmp_path / "runs/demo/version_0", {"test/FPS": 1})
    write_logged(tmp_path / "runs/demo/version_1", {"test/FPS": 2})
    write_config(tmp_path / "runs/demo/version_1", {}, ckpt_path="runs/demo/version_0/checkpoints/last.ckpt")
    monkeypatch.chdir(tmp_path)
    assert read_run(Path("runs/demo/version_1"), "x").trained_in.folder == Path("runs/demo/version_0")
    monkeypatch.chdir("/")
    assert read_run(tmp_path / "runs/demo/version_1", "x").trained_in.name == "demo"
    assert read_run(tmp_path / "runs/demo/version_0", "x").trained_in is None


def test_runs_that_would_be_called_alike_are_called_by_their_paths(tmp_path):
    folders = [tmp_path / place / "demo" for place in ("here", "there")]
    for folder in folders:
        write_logged(folder, {"test/FPS": 1})
    assert [run.name for run in read_runs(folders)] == [str(folder) for folder in folders]


def test_two_runs_stand_side_by_side_with_differences(pair):
    a, b = pair
    sections = page_sections(pair, Gallery())
    sequences, objects = section(sections, "sequences").tables
    assert [(column.title, column.group) for column in sequences.columns[:4]] == [
        ("sequence", ""),
        ("A", "J&F"),
        ("B", "J&F"),
        (f"B{MINUS}A", "J&F"),
    ]
    first = sequences.rows[0]
    value = b.sequences["synthetic-val-000"]["J&F"]
    assert [cell.text for cell in first[:4]] == [
        "synthetic-val-000",
        "100.0",
        f"{value:.1f}",
        f"{MINUS}{100 - value:.1f}",
    ]
    assert first[3].tone == "bad"
    assert first[3].key == pytest.approx(value - 100)
    assert first[-1].drawing.count("<polyline") == 2
    assert [row[:2] for row in texts(objects)] == [[name, one] for name, one in a.objects]
    overview = {row[0]: row[1:] for row in texts(section(sections, "overview").tables[0])}
    assert overview["test/frames a second"] == ["30.0", "25.0", f"{MINUS}5.0"]
    assert overview["test/parameters"] == ["1.50 M", "1.50 M", "0"]
    assert next(iter(overview)) == "test/J&F"
    assert overview["train/loss"] == ["0.25", "1.5", "+1.25"]


def test_one_run_has_no_differences(pair):
    tables = section(page_sections(pair[:1], Gallery()), "sequences").tables
    assert [column.title for column in tables[0].columns] == ["sequence", "J&F", "J", "F", "switches", "J&F over time"]
    assert tables[0].groups == []


def test_tables_leave_out_runs_that_have_no_such_rows(folder):
    runs = read_runs([folder / "classified", folder / "a", folder / "b"])
    sections = page_sections(runs, Gallery())
    sequences, classes = section(sections, "sequences").tables[0], section(sections, "classes").tables[0]
    assert [column.title for column in sequences.columns[:4]] == ["sequence", "B", "C", f"C{MINUS}B"]
    assert [column.run for column in sequences.columns[1:3]] == [1, 2]
    assert sequences.note == "Differences are to B; green is better."
    assert [(column.title, column.run) for column in classes.columns] == [("class", None), ("IoU", 0), ("accuracy", 0)]


def test_settings_that_differ_are_told(pair):
    tables = {table.title: texts(table) for table in section(page_sections(pair, Gallery()), "facts").tables}
    assert tables["Settings of the training that differ"] == [["seed_everything", "0", "5"]]
    assert ["model.network.channels", "64", "64"] in tables["All settings of the training"]


def test_less_memory_and_fewer_switches_are_better():
    runs = [
        run_of("a", measures={"test/peak_memory_gb": 2.0, "test/FPS": 10}, sequences={"x": {"switches": 3}}),
        run_of("b", measures={"test/peak_memory_gb": 1.0, "test/FPS": 12}, sequences={"x": {"switches": math.nan}}),
    ]
    sections = page_sections(runs, Gallery())
    speed, memory = section(sections, "overview").tables[0].rows
    assert (speed[3].text, speed[3].tone) == ("+2.0", "good")
    assert (memory[3].text, memory[3].tone) == (f"{MINUS}1.00", "good")
    (row,) = section(sections, "sequences").tables[0].rows
    assert [cell.text for cell in row[1:]] == ["3", "-", "-"]


def test_the_worst_frames_are_of_different_sequences_and_far_apart():
    good = [90.0] * 40
    good[20] = 50.0
    bad = [30.0] * 40
    bad[5], bad[6], bad[30] = 10.0, 11.0, 12.0
    runs = [run_of("a", frames=frames_of("good", *good) | frames_of("bad", *bad), sequences={"good": {}, "bad": {}})]
    places = [(place.name, place.frame) for place in worst_frames(runs)]
    assert len(places) == 8
    assert places[:3] == [("bad", "00005"), ("good", "00020"), ("bad", "00030")]
    of_bad = sorted(int(frame) for name, frame in places if name == "bad")
    assert min(np.diff(of_bad)) >= 5


def test_a_difference_has_a_colour_for_each_mistake():
    truth = np.array([[1, 1, 1, 0, 0, 255]], np.uint8)
    ours = np.array([[1, 0, 2, 1, 0, 1]], np.uint8)
    scene = Scene(np.full((1, 6, 3), 100, np.uint8), truth, [ours])
    drawn = difference(scene, ours)[0].astype(int)
    grey = np.full(3, 115)
    for place, (colour, share) in enumerate(((RIGHT, 0.35), (MISSED, 0.75), (CONFUSED, 0.75), (TOO_MUCH, 0.75))):
        assert np.abs(drawn[place] - (grey + share * (np.array(colour) - grey))).max() <= 1
    assert (drawn[4:] == grey).all()


def test_pictures_are_small(monkeypatch):
    uri = data_uri(np.random.default_rng(0).integers(0, 256, (1080, 1920, 3), np.uint8))
    assert pixels_of(uri).shape == (270, 480, 3)
    assert len(uri) < 150_000
    assert pixels_of(data_uri(np.zeros((20, 30, 3), np.uint8))).shape == (20, 30, 3)


def test_worst_frames_are_shown_with_truth_and_every_run(pair):
    sources, notes = open_all(pair)
    assert len(sources) == 1  # both were tested on the same data
    gallery = collect(pair, sources)
    assert not notes
    assert not gallery.notes
    assert len(gallery.rows) == 8
    names = [row.title.partition(",")[0] for row in gallery.rows]
    assert len(set(names[:3])) == 3
    row = gallery.rows[0]
    assert [picture.caption.partition(",")[0] for picture in row.pictures] == [
        *("truth", "A a", "difference", "B b", "difference"),
    ]
    truth, ours, right, theirs, wrong = (pixels_of(picture.uri).astype(int) for picture in row.pictures)
    assert np.abs(truth - ours).max() == 0
    assert np.abs(truth - theirs).max() > 60

    def is_red(pixels: np.ndarray) -> np.ndarray:
        return (pixels[..., 0] - pixels[..., 1:].max(axis=-1)) > 80

    assert not is_red(right).any()
    assert is_red(wrong).any()


def test_a_page_without_its_data_says_so(command, folder, tmp_path, monkeypatch):
    shutil.copytree(folder / "b", tmp_path / "b")
    settings = (tmp_path / "b/config.yaml").read_text().replace(str(folder / "data"), "elsewhere")
    (tmp_path / "b/config.yaml").write_text(settings)
    monkeypatch.chdir(tmp_path)
    finished = command("report", "b", "-o", "page.html")
    assert finished.status == 0, finished.err
    assert "Pictures of b are left out" in finished.out
    text = Path("page.html").read_text()
    assert "Pictures of b are left out, for its data cannot be read: DAVIS 2017 is not at data.root=elsewhere" in text
    assert "<img" not in text
    assert "synthetic-val-000" in text
    assert not Path("elsewhere").exists()


@pytest.mark.parametrize("settings", [{}, {"class_path": "datamodules.Nothing"}, {"class_path": "nowhere.Data"}, "x"])
def test_data_that_cannot_be_opened_is_told(tmp_path, settings):
    write_logged(tmp_path / "run", {"test/FPS": 1})
    write_config(tmp_path / "run", settings)
    sources, (note,) = open_all([read_run(tmp_path / "run", "mine")])
    assert sources == []
    assert note.startswith("Pictures of mine are left out")


def test_masks_that_are_gone_are_left_out(folder, tmp_path):
    shutil.copytree(folder / "b", tmp_path / "b", ignore=shutil.ignore_patterns("masks"))
    runs = read_runs([folder / "a", tmp_path / "b"])
    gallery = collect(runs, open_all(runs)[0])
    assert [picture.caption for picture in gallery.rows[0].pictures] == ["truth", "A a, J&F 100.0", "difference"]


def test_tracks_of_instances(folder):
    runs = read_runs([folder / "found", folder / "a"])
    sources, _ = open_all(runs)
    gallery = collect(runs, sources)
    sections = page_sections(runs, gallery)
    tracks, videos = section(sections, "tracks").tables
    assert [column.title for column in tracks.columns] == [
        *("video", "category", "found as", "IoU by frame", "IoU of the track, %"),
    ]
    for row in tracks.rows:
        assert row[2].text.startswith(row[1].text)
        assert row[2].tone == ""
        assert 30 < row[4].key < 100
        assert row[3].drawing.count("<rect") == 6
    assert {row[2] for row in texts(videos)} == {"0"}
    assert len(videos.rows) == 3
    titles = [row.title for row in gallery.rows]
    assert all(any(title.startswith(f"{row[0].text}, frame") for title in titles) for row in videos.rows)
    assert section(sections, "classes").tables == []  # no class has a number


def test_false_tracks_are_counted(folder, tmp_path):
    run = tmp_path / "found"
    shutil.copytree(folder / "found", run)
    entries = json.loads((run / "results.json").read_text())
    size = entries[0]["segmentations"][0]["size"] if entries[0]["segmentations"][0] else [64, 80]
    corner = np.zeros(size, np.uint8, order="F")
    corner[:3, :3] = 1
    mask = {"size": size, "counts": coco.encode(corner)["counts"].decode()}
    video = entries[-1]["video_id"]
    for score in (0.9, 0.1):
        entries.append({"video_id": video, "category_id": 1, "score": score, "segmentations": [mask] * 6})
    (run / "results.json").write_text(json.dumps(entries))
    runs = [read_run(run, "x")]
    gallery = collect(runs, open_all(runs)[0])
    assert sum(scene.false for (scene,) in gallery.tracks.values()) == 1


def test_label_maps_have_classes_and_a_confusion(folder):
    runs = read_runs([folder / "classified"])
    sources, _ = open_all(runs)
    gallery = collect(runs, sources)
    sections = page_sections(runs, gallery)
    classes, confusion = section(sections, "classes").tables
    assert texts(classes)[1] == ["class-01", "50.0", "60.0"]
    by_class = {row[0].text: row[1:] for row in confusion.rows}
    assert [cell.text for cell in by_class["background"]] == ["100.0", "", "", "", ""]
    assert "var(--bad)" in by_class["class-01"][2].style
    assert "var(--good)" in by_class["class-04"][4].style
    (images,) = section(sections, "images").tables
    values = [row[1].key for row in images.rows]
    assert values == sorted(values)
    assert images.folded
    worst = section(sections, "worst")
    assert worst.title == "Worst images"
    assert [row.title for row in worst.gallery][: len(values)] == [row[0].text for row in images.rows]
    yellow = pixels_of(worst.gallery[0].pictures[2].uri).astype(int)
    assert ((yellow[..., 0] > 180) & (yellow[..., 2] < 110)).any()  # class 1 is taken for class 2


def test_names_are_escaped():
    evil = '<img src=x onerror="alert(1)">\'"&'
    curve = {"val/<b>": Curve(["1", "2"], np.array([1.0, 2.0]))}
    runs = [
        run_of(
            f"{evil}{number}",
            sequences={evil: {"J&F": 50.0}},
            objects={(evil, evil): {"J&F": 50.0}},
            frames={(evil, "1"): frames_of(evil, 1, 2)[evil, "1"]},
            categories={evil: {"AP": 50.0}},
            confusion={evil: {evil: 5.0}},
            config={evil: f"{evil}{number}"},
            environment={"device": evil},
            curves=curve,
        )
        for number in range(2)
    ]
    text = render_page(runs, Gallery(notes=[evil]))
    assert "<img" not in text
    assert "<b>A</b>" in text
    assert "val/<b>" not in text
    assert 'onerror="' not in text
    assert text.count("&lt;img src=x onerror=") > 10


def test_the_page_needs_nothing_but_itself(command, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    finished = command("report", str(folder / "a"), str(folder / "b"), "--output", "pages/two.html")
    assert finished.status == 0, finished.err
    assert "The page is pages/two.html" in finished.out
    text = Path("pages/two.html").read_text()
    assert set(re.findall(r"""(?:src|href)=["'](\w*[:#])""", text)) == {"data:", "#"}
    assert "http" not in text
    assert "@import" not in text
    assert len(text) < 2_000_000
    assert [path.name for path in Path("pages").iterdir()] == ["two.html"]


def test_what_is_no_run_is_refused(command, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "demo/version_2").mkdir(parents=True)
    (tmp_path / "demo/version_10").mkdir()
    shutil.copytree(folder / "a", "broken")
    run = str(folder / "a")
    refused(command("report", "nowhere"), "There is no folder nowhere", "such as runs/mavos_r50/version_1")
    refused(command("report", "trade-of", run), "There is no folder trade-of")
    refused(command("report", "empty"), "empty holds no results of a run", "found an empty folder", "metrics.csv")
    refused(command("report", "demo"), "found version_10, version_2", "such as demo/version_10")
    (tmp_path / "runs/demo/version_3").mkdir(parents=True)
    Path("runs/demo/version_3/metrics.csv").write_text("step,loss\n")
    refused(command("report", "runs"), "runs holds no results of a run", "name some of its runs: demo/version_3")
    refused(command("report"), "Name what to report", "lightning_vos report RUN [RUN ...]", "figure | trade-off")
    refused(command("report", run, f"{run}/"), "is named more than once")
    refused(command("report", run, "-o", "page.png"), "--output page.png is no name of a page")
    Path("broken/objects.csv").write_text("sequence,object,J&F\nx,1,fast\n")
    refused(command("report", "broken"), "objects.csv is broken", "found 'fast'")
    Path("broken/objects.csv").write_text("sequence,object,J&F\nx,1\n")
    refused(command("report", "broken"), "objects.csv is broken", "other columns")
    Path("broken/objects.csv").unlink()
    Path("broken/config.yaml").write_text("a: [")
    refused(command("report", "broken"), "config.yaml cannot be read")
    assert not list(tmp_path.glob("*.html"))


def test_help_tells_of_pages_and_figures(command):
    finished = command("report", "--help")
    assert finished.status == 0
    assert "report RUN [RUN ...]" in finished.out
    assert "figure | trade-off | dynamic-frame" in finished.out
    assert "a folder such as" in command("report", "x", "--help").out


def test_curves_are_drawn_in_their_range():
    line = Line(3, np.array([0.0, 10, 20]), np.array([0.0, 100, 50]), "a <b>")
    spark = sparkline([line], width=104, height=44)
    assert 'class="run-3" points="2.0,42.0 52.0,2.0 102.0,22.0"' in spark
    assert "a &lt;b&gt;: 0 to 100" in spark
    gap = Line(0, np.arange(5.0), np.array([1, 2, math.nan, 3, math.nan]), "gap")
    drawn = chart("loss", [gap])
    assert drawn.count("<polyline") == 1
    assert drawn.count("<circle") == 1
    long = Line(0, np.arange(10_000.0), np.ones(10_000), "long")
    assert len(chart("flat", [long])) < 8000
    assert chart("none", [Line(0, np.array([]), np.array([]), "none")]).count("<polyline") == 0
    shares = strip(np.array([0.0, math.nan, 1.0]))
    assert re.findall(r"hsl\((\d+)", shares) == ["0", "120"]


def test_a_split_without_truth_gives_a_page(tmp_path):
    """Of a prediction, or a benchmark whose truth is hidden, there are costs and settings alone."""
    write_logged(tmp_path / "run", {"test/FPS": 10.0})
    runs = [read_run(tmp_path / "run", "x")]
    assert not runs[0].has_results
    assert [one.name for one in page_sections(runs, Gallery()) if not one.is_empty] == ["overview", "training", "facts"]
    assert "test/frames a second" in render_page(runs, Gallery())


def test_data_is_opened_by_the_config_of_the_run(folder):
    data = open_data(read_run(folder / "a", "a"))
    assert type(data).__name__ == "DAVIS"
    assert data.root == folder / "data"
