"""What a run's page on Weights & Biases is given beside config and curves."""

import csv
from types import SimpleNamespace

import lightning.pytorch as L
import pytest
import tiny
import torch
from lightning.pytorch.loggers import CSVLogger, WandbLogger

from lightning_vos.callbacks.wandb_page import RunPage, code_revision
from lightning_vos.evaluation.scores import Scores
from lightning_vos.io.masks import VOC_PALETTE
from lightning_vos.metrics.region_boundary import RegionBoundary
from lightning_vos.metrics.sequence import SequenceScorer
from lightning_vos.models.mavos.module import MAVOS


class Run:
    """Stands in for a run of W&B."""

    id = "run7"

    def __init__(self):
        self.config = self
        self.stated, self.logged = {}, []

    def update(self, content, allow_val_change):
        self.stated |= content

    def log(self, row):
        self.logged += row.items()


class Videos(L.LightningDataModule):
    """Scored videos as a loader gives them."""

    def __init__(self):
        super().__init__()
        self.videos = [tiny.video(number, 7, (1, 2), VOC_PALETTE) for number in range(3)]

    def test_dataloader(self):
        return torch.utils.data.DataLoader(self.videos, batch_size=None)

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        return batch


def evaluator(folder, run, page):
    loggers = [CSVLogger(folder, "runs"), WandbLogger(experiment=run)]
    return L.Trainer(
        accelerator="cpu", logger=loggers, callbacks=[page], enable_progress_bar=False, enable_model_summary=False
    )


@pytest.fixture(scope="module")
def tested(tmp_path_factory):
    """A test, twice by the same trainer."""
    folder, run = tmp_path_factory.mktemp("test"), Run()
    torch.save(tiny.network().state_dict(), folder / "weights.pth")
    trainer = evaluator(folder, run, RunPage(pictures=2, columns=3))
    for _ in range(2):
        trainer.test(MAVOS(tiny.network(), weights=str(folder / "weights.pth")), Videos(), verbose=False)
    return folder / "runs/version_0", run


@pytest.mark.parametrize("name", ["sequences", "objects"])
def test_a_test_shows_its_tables_once(tested, name):
    folder, run = tested
    (table,) = [value for key, value in run.logged if key == f"test/{name}"]
    with (folder / f"{name}.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert table.columns == header
    assert len(table.data) == len(rows) == (3 if name == "sequences" else 6)
    for shown, row in zip(table.data, rows, strict=True):
        assert shown[0] == row[0]
        assert shown[1:] == [float(cell) for cell in row[1:]]


def test_a_test_shows_overlays_of_the_first_videos_once(tested):
    _, run = tested
    (pictures,) = [value for key, value in run.logged if key == "test/overlays"]
    assert [picture._caption for picture in pictures] == ["clip0", "clip1"]
    ((width, _),) = {picture.image.size for picture in pictures}
    assert 3 * 160 < width < 4 * 160  # three square frames of 160 pixels in a row


def test_the_page_says_which_code_it_was(tested):
    assert tested[1].stated == {"code": code_revision()}
    assert code_revision()["lightning_vos"]


def fit_ends(module, run, *, is_global_zero=True):
    """The hooks of a training whose last validation is over."""
    page = RunPage()
    trainer = SimpleNamespace(loggers=[WandbLogger(experiment=run)], is_global_zero=is_global_zero)
    for number in (0, 1):
        page.on_validation_batch_end(trainer, module, None, tiny.video(number), number)
    page.on_validation_epoch_end(trainer, module)
    page.teardown(trainer, module, "fit")
    page.teardown(trainer, module, "fit")


def scored_videos():
    scores = RegionBoundary()
    for number, video, truth in (tiny.video(0), tiny.video(1)):
        scorer = SequenceScorer(truth.plan)
        for t in truth.plan.frames:
            scorer.add(t, video.prompts[0] if number else truth.read(t), truth.read(t))
        scores.update(number, scorer.rows())
    return scores


def test_a_training_shows_the_sequences_of_its_last_validation(tmp_path):
    run, scores = Run(), scored_videos()
    fit_ends(SimpleNamespace(scores=scores), run)
    ((key, table),) = run.logged
    assert key == "val/sequences"
    rows = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.data}
    assert rows["clip0"]["J&F"] == 100
    assert rows["clip1"]["J&F"] == scores.compute().sequences[1]["J&F"] < 100


def test_a_training_shows_classes_where_there_are_no_sequences():
    run = Run()
    fit_ends(SimpleNamespace(scores=Scores("semantic", "", {"mIoU": 2.0}, categories={"cat": {"IoU": 2.0}})), run)
    ((key, table),) = run.logged
    assert (key, table.columns, table.data) == ("val/classes", ["class", "IoU"], [["cat", 2.0]])


def test_other_processes_show_nothing():
    run = Run()
    fit_ends(SimpleNamespace(scores=scored_videos()), run, is_global_zero=False)
    RunPage().setup(SimpleNamespace(is_global_zero=False), None, "fit")
    assert (run.logged, run.stated) == ([], {})


def test_arguments_out_of_range():
    with pytest.raises(ValueError, match="columns=0"):
        RunPage(columns=0)
