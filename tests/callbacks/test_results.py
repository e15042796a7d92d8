"""What a test writes: masks, tables, videos and sheets, and that their numbers are the metric's."""

import csv

import lightning.pytorch as L
import numpy as np
import pytest
import tiny
import torch
from lightning.pytorch.loggers import CSVLogger
from PIL import Image

from lightning_vos.callbacks.baselines import RepeatFirstMask
from lightning_vos.callbacks.results import OverlayWriter
from lightning_vos.errors import ConfigError
from lightning_vos.io.masks import VOC_PALETTE
from lightning_vos.io.video import VideoFile
from lightning_vos.metrics.functional import region_similarity
from lightning_vos.metrics.sequence import SequenceScorer, summarize
from lightning_vos.models.mavos.module import MAVOS
from lightning_vos.vos.track import track

INVERTED = bytes(255 - value for value in VOC_PALETTE)


class Videos(L.LightningDataModule):
    """Scored videos as a loader gives them."""

    def __init__(self, videos):
        super().__init__()
        self.videos = videos

    def test_dataloader(self):
        return torch.utils.data.DataLoader(self.videos, batch_size=None)

    predict_dataloader = test_dataloader

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        return batch


def evaluate(folder, videos, *callbacks, verb="test"):
    """A test of a tiny network; its trainer, its network and the folder of its run."""
    torch.save(tiny.network().state_dict(), folder / "weights.pth")
    trainer = L.Trainer(
        accelerator="cpu",
        logger=CSVLogger(folder, "runs"),
        callbacks=[*callbacks],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = MAVOS(tiny.network(seed=5), weights=str(folder / "weights.pth"))
    getattr(trainer, verb)(module, Videos(videos))
    return trainer, tiny.network(), folder / "runs" / "version_0"


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def scores_of(network, videos):
    """What the metric says of the network's own predictions, and of the first masks repeated."""
    scores, repeated = {}, {}
    for number, video, truth in videos:
        scorer, repeating = SequenceScorer(truth.plan), SequenceScorer(truth.plan)
        for t, said in enumerate(track(network, video.frames, video.prompts)):
            if t in truth.plan.frames:
                scorer.add(t, said.labels.numpy().astype(np.uint8), truth.read(t))
                repeating.add(t, video.prompts[0], truth.read(t))
        scores[number], repeated[number] = scorer.rows(), repeating.rows()
    return summarize(scores), summarize(repeated)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A test of two videos with everything written."""
    videos = [tiny.video(0, 7, (1, 2), VOC_PALETTE), tiny.video(1, 4, (3, 9, 200), INVERTED)]
    folder = tmp_path_factory.mktemp("test")
    return videos, *evaluate(folder, videos, RepeatFirstMask(), OverlayWriter(frames_per_second=5, columns=3))


def test_every_frame_has_a_mask_with_the_palette_of_its_video(finished):
    videos, _, network, folder = finished
    assert len(list((folder / "masks").rglob("*"))) == 2 + 7 + 4
    for _, video, _ in videos:
        for name, said in zip(video.frame_names, track(network, video.frames, video.prompts), strict=True):
            with Image.open(folder / "masks" / video.name / f"{name}.png") as image:
                assert image.mode == "P"
                assert bytes(image.getpalette()) == video.palette
                assert np.array_equal(np.array(image), said.labels.numpy())


def test_tables_hold_the_numbers_of_the_metric(finished):
    videos, trainer, network, folder = finished
    scores, repeated = scores_of(network, videos)
    names = {number: video.name for number, video, _ in videos}
    sequences, objects = rows(folder / "sequences.csv"), rows(folder / "objects.csv")
    assert [row.pop("sequence") for row in sequences] == ["clip0", "clip1"]
    keys = [(row.pop("sequence"), int(row.pop("object"))) for row in objects]
    assert keys == [(names[number], k) for number, k in scores.objects]
    for table, expected in ((sequences, scores.sequences), (objects, scores.objects)):
        for row, values in zip(table, expected.values(), strict=True):
            assert {name: float(value) for name, value in row.items()} == values
            assert row["switches"].isdecimal()
    logged = {name: float(value) for name, value in trainer.logged_metrics.items()}
    for name in ("J&F", "J", "F"):
        assert logged[f"test/{name}"] == pytest.approx(scores.summary[name])
    assert logged["test/identity_switches"] == scores.summary["switches"]
    assert logged["test/J&F_first_mask_repeated"] == pytest.approx(repeated.summary["J&F"])
    assert logged["test/parameters"] == sum(p.numel() for p in network.parameters())
    assert logged["test/FPS"] > 0
    assert logged["test/peak_memory_gb"] > 0


def test_one_object_by_hand(finished):
    """J of an object is the mean over the frames after the first."""
    videos, _, network, folder = finished
    _, video, truth = videos[1]
    labels = [said.labels.numpy() for said in track(network, video.frames, video.prompts)]
    values = [region_similarity(labels[t] == 9, truth.read(t) == 9) for t in truth.plan.frames]
    row = next(row for row in rows(folder / "objects.csv") if row["sequence"] == "clip1" and row["object"] == "9")
    assert float(row["J"]) == pytest.approx(100 * np.mean(values))


def test_overlays_are_videos_and_one_sheet(finished):
    videos, _, _, folder = finished
    sheets = []
    for _, video, _ in videos:
        overlay = VideoFile(folder / "overlays" / f"{video.name}.mp4")
        assert overlay.frames_per_second == 5
        pictures = list(overlay)
        assert len(pictures) == len(video.frames)
        assert abs(pictures[0].shape[1] - 33) <= 1  # H.264 has even sides
        sheets.append(np.array(Image.open(folder / "overlays" / f"{video.name}.png")))
    sheet = np.array(Image.open(folder / "contact_sheet.png"))
    assert sheet.shape == (sum(s.shape[0] for s in sheets), max(s.shape[1] for s in sheets), 3)
    assert sheets[0].shape[1] >= 3 * 160
    assert sorted(p.name for p in (folder / "overlays").iterdir()) == [
        "clip0.mp4",
        "clip0.png",
        "clip1.mp4",
        "clip1.png",
    ]


def test_a_split_without_truth_is_written_and_not_scored(tmp_path, capsys):
    _, _, folder = evaluate(tmp_path, [tiny.video(0, 3, scored=False)], RepeatFirstMask())
    assert len(list((folder / "masks" / "clip0").iterdir())) == 3
    assert not (folder / "sequences.csv").exists()
    said = capsys.readouterr().out
    assert "No scores: this split has no public truth" in said
    assert "first mask repeated" not in said


def test_predict_writes_masks(tmp_path):
    _, _, folder = evaluate(tmp_path, [tiny.video(0, 3)], OverlayWriter(), verb="predict")
    assert len(list((folder / "masks" / "clip0").iterdir())) == 3
    assert (folder / "contact_sheet.png").is_file()


def test_a_run_that_breaks_leaves_no_half_video(tmp_path):
    sample = tiny.video(0, 4)
    frames = [*sample.video.frames[:2], torch.zeros(3, 40, 40)]
    broken = sample._replace(video=type(sample.video)(**{**vars(sample.video), "frames": frames}))
    with pytest.raises(Exception, match="Frame 2 is"):
        evaluate(tmp_path, [broken], OverlayWriter())
    assert list((tmp_path / "runs").rglob("*.mp4")) == []


def test_objects_that_enter_later_are_repeated_from_there(tmp_path):
    sample = tiny.video(0, 4, (1, 2))
    prompts = {0: tiny.squares(1), 2: tiny.squares(0, 2)}
    late = sample._replace(video=type(sample.video)(**{**vars(sample.video), "prompts": prompts}))
    trainer, _, _ = evaluate(tmp_path, [late], RepeatFirstMask())
    expected = SequenceScorer(late.truth.plan)
    for t in (1, 2, 3):
        expected.add(t, tiny.squares(1) if t < 2 else tiny.squares(1, 2), late.truth.read(t))
    found = float(trainer.logged_metrics["test/J&F_first_mask_repeated"])
    assert found == pytest.approx(summarize({0: expected.rows()}).summary["J&F"])


@pytest.mark.parametrize("settings", [{"columns": 0}, {"frames_per_second": 0}])
def test_overlays_of_nothing_are_refused(settings):
    with pytest.raises(ConfigError, match="expected both above 0"):
        OverlayWriter(**settings)


def test_there_is_nothing_to_test_with_random_weights(tmp_path):
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    with pytest.raises(ConfigError, match=r"random ones give random masks.*\n.*--ckpt_path best"):
        trainer.test(MAVOS(tiny.network()), Videos([tiny.video()]))
