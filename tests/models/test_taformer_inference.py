"""From outputs of a network to instances: windows, geometry, categories, what is logged and written, pictures."""

import json
import zipfile
from types import SimpleNamespace

import lightning.pytorch as L
import numpy as np
import pytest
import tiny
import torch
from lightning.pytorch.loggers import CSVLogger
from pycocotools import mask as coco
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_vos.callbacks.instances import painted_instances, result_entries, write_results
from lightning_vos.callbacks.results import OverlayWriter
from lightning_vos.errors import ConfigError, DeviceMemoryError
from lightning_vos.evaluation.youtube_vis import result_track, score_youtube_vis
from lightning_vos.io.masks import VOC_PALETTE
from lightning_vos.io.video import VideoFile
from lightning_vos.models.taformer.encoder import EncoderSettings
from lightning_vos.models.taformer.inference import InferenceSettings, encoded, find_instances
from lightning_vos.models.taformer.module import TAFormer
from lightning_vos.models.taformer.network import TAFormerNetwork
from lightning_vos.structures import InstanceResult, InstanceVideo, ScoredInstanceVideo

NAMES = {3: "cat", 7: "dog"}
AREA = 16 * 16 - 4  # of a square whose corners are rounded by the resizing


class Squares(nn.Module):
    """Says of a clip what frames show: red (1, .., ..), green and blue areas are instances of the queries 0, 1, 2.

    Scores are (logits of) 0.9, 0.8, 0.7 as output 1, 2, 1; a further query is never anywhere. Queries are permuted from
    clip to clip, as nothing ties them to instances.
    """

    classes, first_class = 4, 1

    def __init__(self):
        super().__init__()
        self.anything = nn.Parameter(torch.zeros(1))
        self.clips = []

    def forward(self, frames, sizes):
        self.clips.append(frames)
        scores = torch.full((4, self.classes), 0.01)
        scores[0, 1], scores[1, 2], scores[2, 1], scores[3, 1] = 0.9, 0.8, 0.7, 0.6
        order = torch.randperm(4, generator=torch.Generator().manual_seed(len(self.clips)))
        colours = torch.cat([frames[0], torch.zeros_like(frames[0, :, :1])], dim=1)[..., 2::4, 2::4]
        boxes = torch.zeros(1, len(colours), 4, 2)
        masks = (20 * colours - 10)[:, order]
        return SimpleNamespace(logits=scores.logit()[order][None, None], masks=masks, box_queries=boxes)

    def masks(self, predictions, layer, clip, queries, frames):
        assert (layer, clip) == (0, 0)
        return predictions.masks[frames][:, queries].transpose(0, 1)


def moving(length, *, gone=()):
    """Frames of 32 x 64 pixels: a red square that moves, a green one; in the frames `gone` there is no red."""
    frames = torch.zeros(length, 3, 32, 64)
    for number in range(length):
        if number not in gone:
            frames[number, 0, 4:20, 4 * number + 4 : 4 * number + 20] = 1
        frames[number, 1, 8:24, 44:60] = 1
    return list(frames)


def found(frames, network=None, **settings):
    network = network or Squares()
    settings = InferenceSettings(**{"short_side": 32} | settings)
    return find_instances(network, frames, (32, 64), {1: 3, 2: 7}, settings).results


def pixels(mask):
    return None if mask is None else int(coco.area(mask))


# --- a video as one clip


def test_instances_as_one_clip():
    first, second = [one for one in found(moving(5)) if one.score > 0.5]
    assert (first.category, second.category) == (3, 7)
    assert (first.score, second.score) == pytest.approx((0.9, 0.8))
    assert first.instance != second.instance
    assert [pixels(mask) for mask in first.masks] == [AREA] * 5
    inside = coco.decode(first.masks[2])
    assert inside[5:19, 13:27].all()  # where the square is in frame 2


def test_empty_instances_go_and_are_not_replaced():
    results = found(moving(3), results=3)
    assert [one.score for one in results] == pytest.approx([0.9, 0.8])  # the third is blue, of which there is none


def test_outputs_without_a_category_are_dropped():
    only_cats = find_instances(Squares(), moving(2), (32, 64), {1: 3}, InferenceSettings(short_side=32)).results
    assert {one.category for one in only_cats} == {3}


def test_low_scores_have_no_masks():
    class Unsure(Squares):
        def forward(self, frames, sizes):
            said = super().forward(frames, sizes)
            said.logits.fill_(-8)
            return said

    results = found(moving(2), Unsure())
    assert results
    assert all(one.score < 0.001 and one.masks == (None, None) for one in results)


def test_frames_are_read_one_by_one():
    read = []

    def reading():
        for number, frame in enumerate(moving(7)):
            read.append(number)
            yield frame

    class Watching(Squares):
        def forward(self, frames, sizes):
            assert read[-1] == [3, 5, 6][len(self.clips)]
            return super().forward(frames, sizes)

    network = Watching()
    found(reading(), network, window=4)
    assert [clip.shape[1] for clip in network.clips] == [4, 4, 4]


# --- windows


@pytest.mark.parametrize(("window", "overlap"), [(3, 1), (4, 2), (4, 3), (9, 2), (20, 2)])
def test_windows_find_what_one_clip_finds(window, overlap):
    network = Squares()
    results = [one for one in found(moving(9), network, window=window, overlap=overlap) if one.score > 0.5]
    assert [(one.category, one.score) for one in results] == [(3, pytest.approx(0.9)), (7, pytest.approx(0.8))]
    whole = [one for one in found(moving(9)) if one.score > 0.5]
    assert [one.masks for one in results] == [one.masks for one in whole]
    assert {clip.shape[1] for clip in network.clips} == {min(window, 9)}


def test_what_is_not_in_the_overlap_is_another_instance():
    results = [one for one in found(moving(9, gone=(3, 4)), window=5, overlap=2) if one.score > 0.5]
    cats = [one for one in results if one.category == 3]
    assert [[pixels(mask) for mask in one.masks] for one in cats] == [
        [AREA, AREA, AREA, 0, 0, None, None, None, None],
        [None, None, None, 0, 0, AREA, AREA, AREA, AREA],
    ]
    assert len(results) == 3


def test_the_likelier_of_two_equal_masks_is_linked():
    class Twins(Squares):
        """Two queries of one mask: one is surely a cat, one surely a dog."""

        def forward(self, frames, sizes):
            said = super().forward(frames, sizes)
            red = torch.where(frames[0, :, :1, 2::4, 2::4] > 0.5, 9.0, -9.0)
            logits = torch.full_like(said.logits, -6.0)
            turn = len(self.clips) % 2
            logits[0, 0, turn, 1], logits[0, 0, 1 - turn, 2] = 3, 2
            return SimpleNamespace(logits=logits, masks=red.expand(-1, 4, -1, -1), box_queries=said.box_queries)

    results = [one for one in found(moving(8), Twins(), window=4) if one.score > 0.5]
    assert [one.category for one in results] == [3, 7]
    assert all(None not in one.masks for one in results)
    assert [one.score for one in results] == pytest.approx(torch.tensor([3.0, 2.0]).sigmoid().tolist())


@pytest.mark.parametrize("settings", [{"short_side": 0}, {"results": 0}, {"window": 3, "overlap": 3}, {"window": 1}])
def test_settings_that_show_nothing_are_refused(settings):
    with pytest.raises(ValueError, match="expected"):
        InferenceSettings(**settings)


# --- geometry, memory


def test_exact_geometry_cuts_off_what_the_grid_covers_too_much():
    """A frame of 20 x 36 pixels has a grid of 24 x 40; a border at column 18 of the frame is in its middle."""
    logits = torch.full((1, 1, 6, 10), -1.0)
    centres = 4 * torch.arange(10) + 2
    logits[..., :] = (centres < 18).float() * 2 - 1
    exact = coco.decode(encoded(logits, (20, 36), (40, 72), exact_geometry=True)[0][0])
    stretched = coco.decode(encoded(logits, (20, 36), (40, 72), exact_geometry=False)[0][0])
    assert exact.shape == stretched.shape == (40, 72)
    border = 2 * (centres[3] + centres[4]) / 2  # between the cells of the two signs, twice as large
    assert abs(int(exact[0].sum()) - int(border)) <= 1
    assert int(stretched[0].sum()) < int(border) - 1
    same = torch.randn(2, 1, 6, 10)
    assert encoded(same, (24, 40), (48, 80), exact_geometry=True) == encoded(
        same, (24, 40), (48, 80), exact_geometry=False
    )


class Largest(TorchDispatchMode):
    """Notes the largest tensor that an operator makes anew, in bytes."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        given = {one.untyped_storage().data_ptr() for one in tree_leaves(args) if isinstance(one, torch.Tensor)}
        for one in tree_leaves(output):
            if isinstance(one, torch.Tensor) and one.untyped_storage().data_ptr() not in given:
                self.size = max(self.size, one.untyped_storage().nbytes())
        return output


def test_masks_of_a_long_video_take_no_more_memory(monkeypatch):
    """Than those of a short one: of a few frames at a time, and at full size of one."""
    largest = {}
    for length in (16, 64):
        net, mode = network(), Largest()

        def said(frames, sizes, net=net, mode=mode):
            predictions = type(net).forward(net, frames, sizes)
            mode.size = 0  # from here on there are masks only
            return predictions

        monkeypatch.setattr(net, "forward", said)
        with mode:
            results = found(moving(length), net, short_side=64)
        assert {len(one.masks) for one in results} == {length}
        largest[length] = mode.size
    assert largest[64] == largest[16] > 0


def test_out_of_memory_says_what_to_do():
    class Large(Squares):
        def forward(self, frames, sizes):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")

    with pytest.raises(DeviceMemoryError, match=r"2 frames of 32 x 64(.|\n)*model.inference.window"):
        found(moving(2), Large())


# --- pictures


def test_pictures_show_the_best_category_in_the_colour_of_the_instance():
    masks = []
    for left in (5, 15):
        inside = np.zeros((80, 100), np.uint8)
        inside[30:50, left : left + 20] = 1
        masks.append(coco.encode(np.asfortranarray(inside)))
    results = [
        InstanceResult(4, 3, 0.9, [masks[0]]),
        InstanceResult(4, 7, 0.8, [masks[0]]),
        InstanceResult(2, 7, 0.5, [masks[1]]),
        InstanceResult(9, 7, 0.1, [masks[1]]),
    ]
    frame = torch.zeros(3, 80, 100)
    picture = painted_instances(frame, 0, results, NAMES)
    colours = np.frombuffer(VOC_PALETTE, np.uint8).reshape(256, 3)
    assert np.array_equal(picture[40, 10], colours[1] // 2)
    assert np.array_equal(picture[40, 20], colours[1] // 2)  # the higher score is in front
    assert np.array_equal(picture[40, 30], colours[2] // 2)
    assert picture[:30].any()  # the words
    assert not painted_instances(frame, 0, results, NAMES, min_score=0.95).any()


# --- the module


def network(**settings):
    """A small TAFormer that sees frames of 32 x 32."""
    torch.manual_seed(0)
    small = {"classes": 4, "queries": 5, "channels": 64, "layers": 1, "feed": 32, "encoder": EncoderSettings(window=1)}
    return TAFormerNetwork(tiny.backbone(strides=(8, 16, 32)), **small | settings).eval()


def video(number, length=3, public=True):
    size = (33, 41)
    true = np.zeros((length, *size), np.uint8)
    true[:, 4:20, 6:30] = 1
    track = result_track([coco.encode(np.asfortranarray(mask)) for mask in true])
    frames = tiny.frames(length, *size, seed=number)
    sample = InstanceVideo(f"clip{number}", 10 + number, frames, size, NAMES)
    return ScoredInstanceVideo(number, sample, {(10 + number, 3): [track]} if public else None)


class Videos(L.LightningDataModule):
    categories = NAMES

    def __init__(self, videos):
        super().__init__()
        self.videos = videos

    def val_dataloader(self):
        return torch.utils.data.DataLoader(self.videos, batch_size=None)

    test_dataloader = predict_dataloader = val_dataloader

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        return batch


def run(folder, verb, data, *callbacks, **settings):
    torch.save(network().state_dict(), folder / "weights.pth")
    module = TAFormer(
        network(), inference=InferenceSettings(short_side=32), weights=str(folder / "weights.pth"), **settings
    )
    trainer = L.Trainer(
        accelerator="cpu",
        logger=CSVLogger(folder, "runs"),
        callbacks=[*callbacks],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    getattr(trainer, verb)(module, data)
    return trainer, module, folder / "runs/version_0"


def truth_file(path, videos):
    """What the truth of videos would be on disk."""
    rows, annotations = [], []
    for _, sample, truth in videos:
        (height, width), length = sample.size, len(sample.frames)
        names = [f"{sample.name}/{number}.jpg" for number in range(length)]
        rows.append({"id": sample.video_id, "width": width, "height": height, "length": length, "file_names": names})
        for (video_id, category), tracks in (truth or {}).items():
            for track in tracks:
                masks = [{**mask, "counts": mask["counts"].decode()} for mask in track.masks]
                areas = track.pixels.tolist()
                entry = {"video_id": video_id, "category_id": category, "segmentations": masks, "areas": areas}
                annotations.append(entry | {"id": len(annotations) + 1, "iscrowd": 0})
    categories = [{"id": number, "name": name} for number, name in NAMES.items()]
    content = {"videos": rows, "categories": categories}
    path.write_text(json.dumps(content | ({"annotations": annotations} if annotations else {})))


def test_what_is_logged_is_what_score_says_of_what_is_written(tmp_path):
    videos = [video(0), video(1, length=2)]
    trainer, module, folder = run(tmp_path, "test", Videos(videos), OverlayWriter(min_score=0.0))
    truth_file(tmp_path / "truth.json", videos)
    scores = score_youtube_vis(tmp_path / "truth.json", folder)
    logged = {name: float(value) for name, value in trainer.logged_metrics.items()}
    for name in ("AP", "AP50", "AP75", "AR1", "AR10"):
        assert logged[f"test/{name}"] == pytest.approx(scores.summary[name])
    assert logged["test/parameters"] == sum(one.numel() for one in module.network.parameters())
    assert logged["test/FPS"] > 0
    assert logged["test/peak_memory_gb"] > 0
    entries = json.loads((folder / "results.json").read_text())
    assert {(one["video_id"], len(one["segmentations"])) for one in entries} == {(10, 3), (11, 2)}
    assert {one["category_id"] for one in entries} <= set(NAMES)
    assert (folder / "summary.csv").is_file()
    assert "cat" in (folder / "categories.csv").read_text()
    assert len(list(VideoFile(folder / "overlays/clip0.mp4"))) == 3
    assert (folder / "contact_sheet.png").is_file()
    assert not (folder / "submission.zip").exists()


def test_a_split_without_truth_leaves_a_submission(tmp_path, capsys):
    videos = [video(0, public=False), video(1, length=2, public=False)]
    truth_file(tmp_path / "valid.json", videos)
    data = Videos(videos)
    data.server = lambda: SimpleNamespace(benchmark="youtube_vis", dataset=tmp_path / "valid.json", split=None)
    trainer, _, folder = run(tmp_path, "test", data)
    assert not any(name.startswith("test/A") for name in trainer.logged_metrics)
    said = capsys.readouterr().out
    assert "No scores: this split has no public truth" in said
    assert "submission.zip is packed and checked: 2 videos" in said
    with zipfile.ZipFile(folder / "submission.zip") as archive:
        assert archive.read("results.json") == (folder / "results.json").read_bytes()


def test_validation_and_prediction(tmp_path):
    trainer, _, folder = run(tmp_path, "validate", Videos([video(0), video(1)]))
    assert {"val/AP", "val/AP50", "val/AP75", "val/AR1", "val/AR10"} == trainer.logged_metrics.keys()
    assert not (folder / "results.json").exists()
    (tmp_path / "predict").mkdir()
    _, _, folder = run(tmp_path / "predict", "predict", Videos([video(0, public=False)]))
    assert json.loads((folder / "results.json").read_text())


def test_a_video_counts_once(tmp_path):
    """Under several processes a rank may repeat one."""
    once, _, _ = run(tmp_path, "validate", Videos([video(0), video(1)]))
    (tmp_path / "twice").mkdir()
    twice, module, _ = run(tmp_path / "twice", "validate", Videos([video(1), video(0), video(1)]))
    assert [one.name for one in module.videos] == ["clip0", "clip1"]
    assert twice.logged_metrics == once.logged_metrics


def test_results_cannot_be_left_half_written(tmp_path):
    def breaking():
        yield from result_entries(1, "clip", [InstanceResult(0, 3, 0.5, [None])])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_results(tmp_path / "results.json", breaking())
    assert list(tmp_path.iterdir()) == []


def test_more_categories_than_outputs_are_refused(tmp_path):
    five = InstanceVideo("a", 1, tiny.frames(1), (33, 33), dict.fromkeys(range(5), "cat"))
    many = Videos([ScoredInstanceVideo(0, five, None)])
    with pytest.raises(ConfigError, match="5 categories, the network has 4 outputs"):
        run(tmp_path, "test", many)


def test_a_checkpoint_of_other_classes_is_refused(tmp_path):
    module = TAFormer(network())
    module.on_load_checkpoint({"categories": {3: "cat", 7: "horse"}})
    with pytest.raises(ConfigError, match=r"cat, horse(.|\n)*cat, dog"):
        module._categories(NAMES)
    module.on_load_checkpoint({"categories": NAMES})
    assert module._categories(NAMES) == {1: 3, 2: 7}


def test_learning_rates_and_groups():
    module = TAFormer(network(), backbone_factor=0.1, offsets_factor=0.2)
    module._trainer = SimpleNamespace(estimated_stepping_batches=60)
    settings = module.configure_optimizers()
    optimizer, scheduler = settings["optimizer"], settings["lr_scheduler"]["scheduler"]
    names = {id(parameter): name for name, parameter in module.network.named_parameters()}
    groups = {group["name"]: {names[id(one)] for one in group["params"]} for group in optimizer.param_groups}
    assert set().union(*groups.values()) == set(names.values())
    assert all(name.startswith("backbone.") for name in groups["backbone"])
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in groups["offsets"]} == {
        "sampling_offsets",
        "reference_points",
    }
    assert not any("sampling_offsets" in name for name in groups["rest"])
    rates = []
    for step in range(60):
        if step in (0, 29, 30, 50):
            rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    assert [group["name"] for group in optimizer.param_groups] == ["rest", "offsets", "backbone"]
    base = np.array([1e-4, 2e-5, 1e-5])
    np.testing.assert_allclose(rates, [base, base, base / 10, base / 100])
    assert all(group["weight_decay"] == 1e-4 for group in optimizer.param_groups)


@pytest.mark.parametrize("settings", [{"backbone_factor": -1.0}, {"offsets_factor": -0.1}])
def test_learning_rates_below_zero_are_refused(settings):
    with pytest.raises(ValueError, match="expected 0 or more"):
        TAFormer(network(), **settings)
