"""What a test writes for reports: J and F of each frame, scores of each image, confusion, and what it ran on."""

import csv
import json
from types import SimpleNamespace

import lightning.pytorch as L
import numpy as np
import pytest
import tiny
import torch
from lightning.pytorch.loggers import CSVLogger

from lightning_vos import __version__
from lightning_vos.callbacks.label_maps import LabelMapScoreWriter
from lightning_vos.evaluation.scores import Scores
from lightning_vos.evaluation.semantic import ClassSet
from lightning_vos.io.masks import VOC_PALETTE
from lightning_vos.metrics.functional import boundary_f_measure, region_similarity
from lightning_vos.models.mavos.module import MAVOS
from lightning_vos.structures import ImageTruth, ScoredImage, WholeImage
from lightning_vos.vos.track import track

CLASSES = ClassSet("test", ("ground", "tree", "house"), first=1)


class Videos(L.LightningDataModule):
    def __init__(self, videos):
        super().__init__()
        self.videos = videos

    def test_dataloader(self):
        return torch.utils.data.DataLoader(self.videos, batch_size=None)

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        return batch


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def tested(tmp_path_factory):
    """A test of two videos, the first of which is given again as by a sampler that evens out processes."""
    folder = tmp_path_factory.mktemp("test")
    videos = [tiny.video(0, 6, (1, 2), VOC_PALETTE), tiny.video(1, 4, (3,), VOC_PALETTE)]
    torch.save(tiny.network().state_dict(), folder / "weights.pth")
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(accelerator="cpu", logger=CSVLogger(folder, "runs"), **quiet)
    module = MAVOS(tiny.network(seed=5), weights=str(folder / "weights.pth"))
    trainer.test(module, Videos([*videos, videos[0]]), verbose=False)
    return videos, folder / "runs/version_0"


def test_every_scored_frame_of_an_object_has_a_row(tested):
    videos, folder = tested
    expected = {}
    for _, video, truth in videos:
        for number, said in enumerate(track(tiny.network(), video.frames, video.prompts)):
            for one in np.unique(video.prompts[0])[1:].tolist() if number in truth.plan.frames else ():
                ours, theirs = said.labels.numpy() == one, truth.read(number) == one
                scores = (region_similarity(ours, theirs), boundary_f_measure(ours, theirs))
                expected[video.name, str(one), video.frame_names[number]] = [100 * float(score) for score in scores]
    table = rows(folder / "frames.csv")
    found = {(row["sequence"], row["object"], row["frame"]): [float(row["J"]), float(row["F"])] for row in table}
    assert list(found) == sorted(expected)
    assert len(table) == len(found)
    for key, values in expected.items():
        assert found[key] == pytest.approx(values)


def test_means_of_frames_are_the_scores_of_objects(tested):
    _, folder = tested
    for row in rows(folder / "objects.csv"):
        of_object = [
            float(frame["J"])
            for frame in rows(folder / "frames.csv")
            if (frame["sequence"], frame["object"]) == (row["sequence"], row["object"])
        ]
        assert float(row["J"]) == pytest.approx(np.mean(of_object))


def test_what_it_ran_on_is_written(tested):
    _, folder = tested
    content = json.loads((folder / "environment.json").read_text())
    assert content["lightning_vos"] == __version__
    assert content["torch"] == torch.__version__
    assert content["device"].startswith("cpu")


def sample(number, mask):
    truth = None if mask is None else ImageTruth(torch.zeros(2), torch.from_numpy(mask))
    return ScoredImage(number, WholeImage(f"image-{number}", torch.zeros(3, 2, 2), (2, 2)), truth)


def trainer_in(folder):
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    data = SimpleNamespace(class_set=CLASSES)
    return SimpleNamespace(loggers=[], default_root_dir=folder, is_global_zero=True, strategy=strategy, datamodule=data)


def test_images_and_confusion(tmp_path):
    writer, trainer = LabelMapScoreWriter(), trainer_in(tmp_path)
    truth = np.array([[1, 1], [2, 255]], np.uint8)
    wrong = np.array([[1, 2], [2, 3]], np.uint8)
    writer.on_label_map(trainer, sample(1, truth), wrong)
    writer.on_label_map(trainer, sample(0, truth), truth)
    writer.on_label_map(trainer, sample(1, truth), wrong)  # again, as by a sampler that evens out processes
    writer.on_label_map(trainer, sample(2, None), wrong)
    module = SimpleNamespace(scores=Scores("semantic", "what", {"mIoU": 50.0}, categories={"tree": {"IoU": 1.0}}))
    writer.on_test_end(trainer, module)
    assert [list(row.values())[:3] for row in rows(tmp_path / "images.csv")] == [
        ["image-0", "100.0", "100.0"],
        ["image-1", "50.0", "66.66666666666666"],
    ]
    assert [list(row.values()) for row in rows(tmp_path / "confusion.csv")] == [
        ["ground", "3", "1", "0"],
        ["tree", "0", "2", "0"],
        ["house", "0", "0", "0"],
    ]
    assert json.loads((tmp_path / "environment.json").read_text())["device"].startswith("cpu")


def test_nothing_is_scored_without_masks(tmp_path, capsys):
    writer, trainer = LabelMapScoreWriter(), trainer_in(tmp_path)
    writer.on_label_map(trainer, sample(0, None), np.zeros((2, 2), np.uint8))
    writer.on_test_end(trainer, SimpleNamespace(scores=None))
    assert "no public masks" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["environment.json"]
