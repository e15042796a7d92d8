"""QMVOS and XMem through the commands: runs that go on, benchmarks, two processes, rows of Table 3, every memory."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny as small
import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import instantiate_module
from runs import REPOSITORY, checkpoint, files, last, table

from datamodules.synthetic_files import SyntheticSettings
from datamodules.synthetic_layouts import write_synthetic_long_time_video, write_synthetic_youtube_vos
from lightning_vos.evaluation import score
from lightning_vos.io.masks import read_mask

CONFIGS = REPOSITORY / "configs"
REAL = REPOSITORY.parent / "shared/data/real"
RECIPE = """
include: [qmvos_demo.yaml]
trainer:
  max_steps: 8
  val_check_interval: 4
  log_every_n_steps: 1
  enable_model_summary: false
  enable_progress_bar: false
model:
  init_args:
    network:
      init_args:
        key_channels: 16
        value_channels: 32
        hidden_channels: 16
        decoder_channels: [64, 32]
        canvas: {short_side: 64}
data:
  init_args:
    settings: {train: 4, val: 3, frames: 8, height: 64, width: 80}
    batch_size: 2
    workers: 0
    sampler: {length: 4, max_gap: 2, min_pixels: 20}
    transform: {crop: 64, short_side: 64, min_pixels: 10}
"""
MCA = ("--config", "configs/memory/mca.yaml")
MEMORY_OF = {"qmvos": (), "mca": MCA}
QUERIES = "--model.network.queries"
TABLE_3 = {
    "QMVOS": (),
    "3a, XMem": (f"{QUERIES}=null",),
    "3b, F16": (f"{QUERIES}.sim.scales=[f16]",),
    "3b, F8": (f"{QUERIES}.sim.scales=[f8]",),
    "3b, F16, F8 and F4": (f"{QUERIES}.sim.scales=[f16,f8,f4]",),
    "3c, without interaction": (f"{QUERIES}.sim.interaction=false",),
    "3d, F16": (f"{QUERIES}.qcim.source=f16",),
    "3e, first frame": (f"{QUERIES}.source=first",),
}
LEARNED = {"mca", "cross_attention", "focal", "gcvit"}
PLAIN = {"J&F", "J", "F"}
GROUPED = PLAIN | {"G", "J_seen", "J_unseen", "F_seen", "F_unseen"}


@pytest.fixture(scope="module")
def recipe(small_recipe, data) -> tuple[str, ...]:
    return small_recipe(RECIPE, data)


@pytest.fixture(scope="module")
def qmvos(fitted, recipe) -> Path:
    return fitted(*recipe)


@pytest.fixture(scope="module")
def mca(fitted, recipe) -> Path:
    """With MAVOS's memory."""
    return fitted(*recipe, *MCA)


class FallsOver(Callback):
    """Ends a run in no order, two steps after its last checkpoint."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: object) -> None:
        if trainer.global_step == self.step:
            raise OSError("no power")


# --- a run that was ended goes on


def assert_same_run(run: Path, whole: Path) -> None:
    """The same metrics at every step, weights and state of the optimizer."""
    expected = table(whole)
    assert [step for name, step in expected if name == "train/loss"] == list(range(8))
    assert [step for name, step in expected if name == "val/J&F"] == [3, 7]
    assert table(run) == expected
    ours, theirs = checkpoint(run), checkpoint(whole)
    assert ours["global_step"] == theirs["global_step"] == 8
    assert ours["state_dict"].keys() == theirs["state_dict"].keys()
    assert all(torch.equal(ours["state_dict"][name], value) for name, value in theirs["state_dict"].items())
    (moments,), (expected_moments,) = ([one["state"] for one in c["optimizer_states"]] for c in (ours, theirs))
    assert moments.keys() == expected_moments.keys()
    for number, state in expected_moments.items():
        assert all(torch.equal(moments[number][part], state[part]) for part in ("step", "exp_avg", "exp_avg_sq"))


@pytest.mark.slow  # the default suite keeps MAVOS
@pytest.mark.parametrize("trained", ["qmvos", "mca"])
def test_a_run_that_fell_over_goes_on_as_if_nothing_had_happened(command, workplace, recipe, request, trained):
    whole = request.getfixturevalue(trained)
    words = ("fit", *recipe, *MEMORY_OF[trained])
    with pytest.raises(OSError, match="power"):
        command(*words, "--trainer.callbacks+=test_qmvos_runs.FallsOver", "--trainer.callbacks.step=6")
    run = workplace / "runs/small/version_0"
    assert checkpoint(run)["global_step"] == 4
    resumed = command(*words, "--ckpt_path", "last")
    assert resumed.status == 0, resumed.err
    assert "Restored all states" in resumed.err
    assert_same_run(run, whole)


# --- benchmarks


@pytest.fixture(scope="module")
def sets(tmp_path_factory, data) -> Path:
    """The layouts beside one another."""
    root = tmp_path_factory.mktemp("sets")
    shutil.copytree(data / "DAVIS", root / "DAVIS")
    settings = SyntheticSettings(train=1, val=2, frames=11, height=64, width=80)
    write_synthetic_youtube_vos(root / "YouTubeVOS", settings)
    write_synthetic_long_time_video(root / "LongTimeVideo", settings)
    return root


def first_seen(folder: Path) -> dict[int, str]:
    """The name of the first mask in which each object is."""
    found: dict[int, str] = {}
    for path in sorted(folder.glob("*.png")):
        for object_id in np.unique(read_mask(path)).tolist():
            found.setdefault(object_id, path.stem)
    return {object_id: name for object_id, name in found.items() if object_id}


@pytest.mark.parametrize(
    ("trained", "config", "truth", "protocol", "keys"),
    [
        ("qmvos", "davis2017", "DAVIS", "davis2017", PLAIN),
        ("qmvos", "youtube_vos_2019", "YouTubeVOS/train", "youtube_vos", GROUPED),
        ("mca", "youtube_vos_2019", "YouTubeVOS/train", "youtube_vos", GROUPED),
        ("qmvos", "long_time_video", "LongTimeVideo", "long_time_video", PLAIN),
    ],
)
def test_what_is_logged_is_what_score_says(
    command, workplace, recipe, sets, request, trained, config, truth, protocol, keys
):
    split = "holdout_val" if protocol == "youtube_vos" else None
    data = (f"--config=configs/data/{config}.yaml", f"--data.root={sets}")
    words = (*recipe, *MEMORY_OF[trained], *data, "--ckpt_path", last(request.getfixturevalue(trained)))
    finished = command("test", *words, *(() if split is None else (f"--data.test_split={split}",)))
    assert finished.status == 0, finished.err
    run = workplace / "runs/small/version_0"
    logged = {name.removeprefix("test/"): value for (name, _), value in table(run).items()}
    others = {"J&F_first_mask_repeated", "identity_switches", "FPS", "peak_memory_gb", "parameters"}
    assert logged.keys() == keys | others
    scores = score(sets / truth, run, protocol, split=split)
    assert scores.summary["J&F"] > 0
    for key in keys:
        assert logged[key] == pytest.approx(scores.summary[key], rel=2**-23), key  # what is logged is a float32
    assert logged["identity_switches"] == scores.summary["switches"]
    if split is not None:
        entries = {folder.name: first_seen(folder) for folder in (run / "masks").iterdir()}
        assert any(len(set(names.values())) > 1 for names in entries.values()), "no object enters late"
        assert entries == {name: first_seen(sets / truth / "Annotations" / name) for name in entries}


@pytest.mark.skipif(not REAL.is_dir(), reason=f"needs the real videos in {REAL}")
def test_late_objects_of_a_real_video(command, workplace, recipe, qmvos):
    data = ("--config=configs/data/youtube_vos_2019.yaml", f"--data.root={REAL}", "--data.all_frames=true")
    words = (*recipe, *data, "--data.resize_masks=true", "--ckpt_path", last(qmvos))
    finished = command("predict", *words)
    assert finished.status == 0, finished.err
    masks = workplace / "runs/small/version_0/masks/judo"
    assert len(list(masks.iterdir())) == 16
    assert first_seen(masks) == {1: "00000", 2: "00005", 3: "00008", 4: "00013"}
    for object_id, name in first_seen(masks).items():
        given = read_mask(REAL / f"YouTubeVOS/valid/Annotations/judo/{name}.png") == object_id
        inside = read_mask(masks / f"{name}.png")[:, : given.shape[1]][given]  # one given mask is a column narrower
        assert (inside == object_id).mean() > 0.9


@pytest.mark.slow  # the default suite keeps MAVOS
def test_two_processes_score_as_one(by_one_and_by_two, recipe, qmvos):
    one, two, out = by_one_and_by_two(*recipe, "--ckpt_path", last(qmvos))
    assert "Warning" not in out
    assert len(files(one, "masks/*/*.png")) == 24
    for pattern in ("*.png", "sequences.csv", "objects.csv"):
        assert files(two, pattern) == files(one, pattern)
    ours, theirs = table(two), table(one)
    assert ours.keys() == theirs.keys()
    measured = {("test/FPS", 0), ("test/peak_memory_gb", 0)}
    assert {key: ours[key] for key in ours.keys() - measured} == {key: theirs[key] for key in theirs.keys() - measured}
    assert ours["test/J&F", 0] > 0


# --- settings


def learns(model: dict[str, Any], memory: str | None) -> None:
    """The network of these settings has a finite loss, and all of it a gradient, in clips of four frames."""
    arguments = model["init_args"]
    if memory is not None:
        chosen = yaml.safe_load((CONFIGS / f"memory/{memory}.yaml").read_text())["model"]["init_args"]["network"]
        arguments["network"]["init_args"]["memory"] = chosen["init_args"]["memory"]
    torch.manual_seed(0)
    module = instantiate_module(LightningModule, {"_class_path": model["class_path"], **arguments})
    clip = small.clip(4, batch=1)
    predictions = module.unroll(clip, 0.5, module.draw(1, 4))
    assert predictions.logits.shape == (3, 1, 4, 33, 33)
    predictions.loss.backward()
    assert predictions.loss.isfinite()
    gradients = {name: parameter.grad for name, parameter in module.network.named_parameters()}
    assert [name for name, gradient in gradients.items() if gradient is None] == []
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    # single ones may be 0, behind a norm that begins at 0 or an affinity that has chosen
    parts = {name.partition(".")[0] for name in gradients}
    assert {name.partition(".")[0] for name, gradient in gradients.items() if gradient.any()} == parts
    assert ("policy" in parts) == (memory in LEARNED)


@pytest.mark.parametrize("row", TABLE_3)
def test_every_row_of_table_3_learns(command, workplace, recipe, row):
    finished = command("fit", *recipe, *TABLE_3[row], "--print_config")
    assert finished.status == 0, finished.err
    model = yaml.safe_load(finished.out)["model"]
    learns(model, None)
    learns(model, "mca")


@pytest.mark.parametrize("memory", sorted(path.stem for path in CONFIGS.glob("memory/*.yaml")))
def test_every_memory_learns(qmvos, memory):
    learns(yaml.safe_load((qmvos / "config.yaml").read_text())["model"], memory)
