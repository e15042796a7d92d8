"""Token masking as a LightningModule: draws, loss, gates, label maps, what is written and refused."""

import json
from pathlib import Path

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from datamodules.label_files import LabelTable
from lightning_vos.callbacks.label_maps import ClassMapWriter, LabelMapOverlay, LabelMapWriter, picture
from lightning_vos.errors import ConfigError
from lightning_vos.evaluation.semantic import ClassSet, score_semantic
from lightning_vos.io.class_maps import read_class_maps
from lightning_vos.io.masks import VOC_PALETTE, read_mask, read_palette, write_mask
from lightning_vos.models.token_masking.criterion import Criterion, diversity_loss
from lightning_vos.models.token_masking.masking import MaskingSchedule
from lightning_vos.models.token_masking.module import TokenMasking
from lightning_vos.models.token_masking.network import TokenMaskingNetwork, TokenPredictions
from lightning_vos.models.token_masking.pseudo_masks import PseudoMaskSettings
from lightning_vos.models.token_masking.vit import ViTSettings
from lightning_vos.optim import CosineSchedule
from lightning_vos.structures import ImageTruth, LabelledImages, ScoredImage, WholeImage

NAMES = ("cat", "dog")
SIZES = [(20, 16), (17, 25), (16, 16)]  # on disk; the network sees 16 x 24


def small(classes=2, seed=0, **settings):
    torch.manual_seed(seed)
    return TokenMaskingNetwork(classes, ViTSettings(width=16, depth=2, heads=2, patch=4, grid=4), **settings)


def truth(number):
    mask = np.random.default_rng(number).integers(0, 3, SIZES[number]).astype(np.uint8)
    mask[0] = 255
    return torch.from_numpy(mask)


def scored(number, *, has_masks=True):
    generator = torch.Generator().manual_seed(number)
    image = WholeImage(f"image-{number}", torch.randn(3, 16, 24, generator=generator), SIZES[number])
    labels = torch.tensor([1.0, 0.0] if number == 0 else [0.0, 1.0])
    return ScoredImage(number, image, ImageTruth(labels, truth(number) if has_masks else None))


class Images(L.LightningDataModule):
    """Three images; batches of noise to train on, whose labels alternate."""

    class_names, class_set = NAMES, ClassSet("pets", ("background", *NAMES))
    predict_split = "train"

    def __init__(self, samples=None, batches=4):
        super().__init__()
        self.samples = [scored(number) for number in range(3)] if samples is None else samples
        self.batches = batches

    def describe(self, split):
        return f"Pets {split}", Path("pets")

    def label_table(self, split):
        return LabelTable(NAMES, {f"image-{n}": np.array([n != 0, n == 0], np.uint8) for n in range(3)})

    def train_dataloader(self):
        labels = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        generator = torch.Generator().manual_seed(0)
        batches = [
            LabelledImages(torch.randn(2, 3, 16, 16, generator=generator), labels, ("a", "b"))
            for _ in range(self.batches)
        ]
        return torch.utils.data.DataLoader(batches, batch_size=None)

    def val_dataloader(self):
        return torch.utils.data.DataLoader(self.samples, batch_size=None)

    test_dataloader = val_dataloader

    def predict_dataloader(self):
        samples = [sample._replace(truth=None) for sample in self.samples]
        return torch.utils.data.DataLoader(samples, batch_size=None)


def trainer(folder, *callbacks, **settings):
    return L.Trainer(
        accelerator="cpu",
        logger=CSVLogger(folder, "runs", version=settings.pop("version", None)),
        callbacks=[*callbacks],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        log_every_n_steps=1,
        **settings,
    )


def module(folder, seed=1, network=None, **settings):
    """With weights, for tests and predictions."""
    network = small(seed=seed) if network is None else network
    torch.save(network.state_dict(), folder / f"weights-{seed}.pth")
    return TokenMasking(network, weights=str(folder / f"weights-{seed}.pth"), **settings)


TOP = PseudoMaskSettings(top1=True)

# --- training


def predictions(logits, maps=None, patch_logits=None):
    return TokenPredictions(torch.tensor(logits), torch.empty(0), patch_logits, maps)


def test_the_loss_is_the_sum_of_its_weighted_parts():
    labels = torch.tensor([[1.0, 0.0]])
    found = Criterion()(predictions([[0.0, 0.0]]), labels, torch.tensor(10.0))
    assert {name: float(part) for name, part in found.parts.items()} == pytest.approx(
        {"classification": np.log(2), "gates": 0.1}
    )
    assert float(found.total) == pytest.approx(np.log(2) + 0.1)
    maps = torch.tensor([[[[1.0, 0.0]], [[2.0, 0.0]]]])  # two maps that are alike: off the diagonal the cosines are 1
    full = Criterion(diversity=0.1, patch_weight=2.0)(
        predictions([[0.0, 0.0]], maps, torch.tensor([[0.0, 0.0]])), labels, None
    )
    assert list(full.parts) == ["classification", "diversity", "patches"]
    assert float(full.parts["diversity"]) == pytest.approx(0.1 * np.sqrt(2))
    assert float(full.parts["patches"]) == pytest.approx(2 * np.log(2))
    assert float(diversity_loss(torch.zeros(1, 3, 2, 2))) == pytest.approx(np.sqrt(3))
    with pytest.raises(ValueError, match="no maps"):
        Criterion(diversity=0.1)(predictions([[0.0, 0.0]]), labels, None)
    with pytest.raises(ValueError, match="0 or more"):
        Criterion(gate_weight=-1)


def masks_of(model, part=0, step=0, rank=0):
    """What would be drawn."""

    class Fake:
        global_step, accumulate_grad_batches, global_rank = step, 4, rank

    model._trainer = Fake()
    return torch.rand(64, generator=model._generator(part))


def test_draws_are_a_function_of_seed_step_part_and_rank(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    torch.manual_seed(0)
    first = masks_of(TokenMasking(small()))
    torch.manual_seed(1)  # nothing else that is drawn matters
    assert torch.equal(masks_of(TokenMasking(small())), first)
    others = [masks_of(TokenMasking(small()), **change) for change in ({"part": 1}, {"step": 1}, {"rank": 1})]
    monkeypatch.setenv("PL_GLOBAL_SEED", "6")
    others.append(masks_of(TokenMasking(small())))
    assert all(not torch.equal(first, other) for other in others)


def test_gates_have_a_rate_of_their_own_and_no_decay(tmp_path):
    model = TokenMasking(small(), schedule=CosineSchedule(), gate_factor=50.0)
    fit = trainer(tmp_path, max_steps=4, limit_val_batches=0)
    fit.fit(model, Images())
    groups = {group["name"]: group for group in fit.optimizers[0].param_groups}
    assert [parameter.shape for parameter in groups["gates"]["params"]] == [(2, 2)]
    assert groups["gates"]["initial_lr"] == groups["decayed"]["initial_lr"] == 6.25e-5
    first = CosineSchedule().rate(3, 4, 1.0)
    scheduler = fit.lr_scheduler_configs[0].scheduler
    assert [factor(3) for factor in scheduler.lr_lambdas] == pytest.approx([first, first, 50 * first])
    assert groups["decayed"]["weight_decay"] == 0.05
    assert groups["gates"]["weight_decay"] == groups["plain"]["weight_decay"] == 0
    own = dict(model.network.named_parameters())
    decayed = {id(parameter) for parameter in groups["decayed"]["params"]}
    assert {name for name, value in own.items() if id(value) in decayed} == {
        name
        for name, value in own.items()
        if value.dim() > 1 and name not in ("vit.class_tokens", "vit.register", "vit.positions", "gates.log_a")
    }


def test_training_masks_absent_classes_alone_and_logs_open_heads(tmp_path):
    network = small()
    seen = []
    network.register_forward_hook(lambda _, arguments, __: seen.append(arguments[1]), with_kwargs=False)
    fit = trainer(tmp_path, max_steps=4)
    fit.fit(TokenMasking(network, masking=MaskingSchedule(1.0)), Images())
    assert len(seen) == 4
    assert all(torch.equal(masked, torch.tensor([[False, True], [True, False]])) for masked in seen)
    logged = fit.logged_metrics
    assert logged["train/open_heads"] == 1
    assert (logged["train/open_heads_01"], logged["train/open_heads_02"]) == (2, 2)
    assert logged["train/loss"] == pytest.approx(float(logged["train/classification"] + logged["train/gates"]))
    assert {"val/mAP", "val/F1", "val/mIoU"} <= set(logged)


def test_a_background_token_is_always_shown(tmp_path):
    network = small(classes=3)
    seen = []
    network.register_forward_hook(lambda _, arguments, __: seen.append(arguments[1]))
    model = TokenMasking(network, MaskingSchedule(1.0), pseudo_masks=PseudoMaskSettings(background="token"))
    trainer(tmp_path, max_steps=1).fit(model, Images())
    assert torch.equal(seen[0], torch.tensor([[False, False, True], [False, True, False]]))


# --- evaluation


def test_what_is_logged_is_what_score_says_of_the_files(tmp_path):
    data = Images()
    for sample in data.samples:
        write_mask(tmp_path / "truth" / f"{sample.image.name}.png", sample.truth.mask.numpy())
    test = trainer(tmp_path, LabelMapOverlay(), ClassMapWriter())
    model = module(tmp_path, pseudo_masks=TOP)
    test.test(model, data, verbose=False)
    run = tmp_path / "runs/version_0"
    for sample in data.samples:
        path = run / "masks" / f"{sample.image.name}.png"
        assert read_mask(path).shape == sample.image.size
        assert read_palette(path) == VOC_PALETTE
        maps = read_class_maps(run / "maps" / f"{sample.image.name}.npz")
        assert set(maps.values.tolist()) <= {1, 2}
        assert (run / "overlays" / f"{sample.image.name}.jpg").is_file()
    scores = score_semantic(tmp_path / "truth", run, classes=("background", *NAMES))
    assert test.logged_metrics["test/mIoU"] == pytest.approx(scores.summary["mIoU"], rel=1e-6)
    assert "Pets test" in scores.variant  # how they were made
    assert {"test/mAP", "test/F1", "test/FPS", "test/parameters"} <= set(test.logged_metrics)
    assert {"summary.csv", "classes.csv", "protocol.txt", "made_with.json"} <= {path.name for path in run.iterdir()}


def test_without_masks_labels_are_scored_alone(tmp_path, capsys):
    data = Images([scored(number, has_masks=False) for number in range(3)], batches=1)
    test = trainer(tmp_path)
    test.test(module(tmp_path), data, verbose=False)
    assert "test/mAP" in test.logged_metrics
    assert "test/mIoU" not in test.logged_metrics
    assert "No mIoU" in capsys.readouterr().out
    fit = trainer(tmp_path, max_steps=1)
    fit.fit(TokenMasking(small()), data)
    assert torch.isnan(fit.logged_metrics["val/mIoU"])  # a checkpoint may be chosen by it


def test_a_prediction_goes_on_where_it_was_stopped(tmp_path):
    model, data = module(tmp_path, pseudo_masks=TOP), Images()
    trainer(tmp_path, LabelMapWriter(tmp_path / "out")).predict(model, data)
    masks = sorted((tmp_path / "out/masks").iterdir())
    assert len(masks) == 3
    contents = [path.read_bytes() for path in masks]
    masks[1].unlink()
    written = masks[0].stat().st_mtime_ns
    trainer(tmp_path, LabelMapWriter(tmp_path / "out")).predict(module(tmp_path, pseudo_masks=TOP), data)
    assert [path.read_bytes() for path in masks] == contents
    assert masks[0].stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"seed": 2}, "weights "),
        ({"pseudo_masks": PseudoMaskSettings(threshold=0.5)}, "top1|threshold|protocol"),
    ],
)
def test_masks_of_two_kinds_are_not_mixed(tmp_path, change, told):
    words = {"pseudo_masks": TOP} | change
    trainer(tmp_path, LabelMapWriter(tmp_path / "out")).predict(module(tmp_path, pseudo_masks=TOP), Images())
    with pytest.raises(ConfigError, match=rf"made otherwise[^\n]*\n  found [^\n]*({told})"):
        trainer(tmp_path, LabelMapWriter(tmp_path / "out")).predict(module(tmp_path, **words), Images())
    (tmp_path / "out/made_with.json").unlink()
    with pytest.raises(ConfigError, match="nothing that says how"):
        trainer(tmp_path, LabelMapWriter(tmp_path / "out")).predict(module(tmp_path, pseudo_masks=TOP), Images())


def test_labels_of_images_choose_their_classes(tmp_path):
    """In a test they come with the image, in a prediction from the data; the network does not see them."""
    settings = {"pseudo_masks": PseudoMaskSettings(labels="image", background="none")}
    data = Images()
    trainer(tmp_path).test(module(tmp_path, **settings), data, verbose=False)
    for number, value in enumerate((1, 2, 2)):
        assert set(np.unique(read_mask(tmp_path / f"runs/version_0/masks/image-{number}.png"))) == {value}
    trainer(tmp_path).predict(module(tmp_path, **settings), data)
    for number, value in enumerate((2, 1, 1)):  # the table has them the other way round
        assert set(np.unique(read_mask(tmp_path / f"runs/version_1/masks/image-{number}.png"))) == {value}
    made_with = json.loads((tmp_path / "runs/version_1/made_with.json").read_text())
    assert "Pets train" in made_with["protocol"]
    assert "image-level truth" in made_with["protocol"]
    unlabelled = Images([scored(0)._replace(truth=None)])
    with pytest.raises(ConfigError, match="truth of image-0 is not public"):
        trainer(tmp_path).test(module(tmp_path, **settings), unlabelled, verbose=False)


# --- refusals


def test_a_background_token_is_one_of_the_classes(tmp_path):
    with pytest.raises(ConfigError, match="The data has 3 classes: background, cat, dog\n  the network has 2"):
        token = PseudoMaskSettings(background="token")
        trainer(tmp_path, max_steps=1).fit(TokenMasking(small(), pseudo_masks=token), Images())


def test_settings_that_cannot_be_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"patch_weight is above 0, but network.patch_head is false"):
        TokenMasking(small(), criterion=Criterion(patch_weight=1.0))
    with pytest.raises(ValueError, match="gate_factor=-1"):
        TokenMasking(small(), gate_factor=-1)
    with pytest.raises(ConfigError, match="random ones give random masks"):
        trainer(tmp_path).test(TokenMasking(small()), Images(), verbose=False)


def test_the_patch_head_learns_where_it_has_a_loss():
    frozen, learning = (
        TokenMasking(small(patch_head=True), criterion=Criterion(patch_weight=weight)) for weight in (0.0, 1.0)
    )
    assert not any(parameter.requires_grad for parameter in frozen.network.patch_head.parameters())
    assert all(parameter.requires_grad for parameter in learning.network.patch_head.parameters())


@pytest.mark.parametrize("bands", [1, 2, 3, 13])
def test_any_number_of_bands_can_be_painted(bands):
    pixels = torch.randn(bands, 8, 12)
    assert picture(pixels, (20, 30)).shape == (20, 30, 3)
    assert picture(torch.zeros(bands, 8, 12), (8, 12)).max() == 0
