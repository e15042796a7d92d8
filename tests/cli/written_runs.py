"""Small runs as `lightning_vos test` leaves them, with the data that they were tested on, and without any network."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image
from pycocotools import mask as coco

from datamodules.synthetic_files import SyntheticSettings, write_davis
from datamodules.synthetic_images import ImageSettings, write_images
from datamodules.synthetic_instances import write_synthetic_youtube_vis
from lightning_vos.evaluation import score
from lightning_vos.io.masks import read_mask, write_mask

SETTINGS = SyntheticSettings(train=1, val=3, frames=6, height=64, width=80)
STEPS = 4


def write_logged(run: Path, tested: dict[str, float], scale: float = 1.0) -> None:
    """A `metrics.csv` of a training whose loss falls and of a test."""
    run.mkdir(parents=True, exist_ok=True)
    names = ["val/J&F", *tested]
    lines = [",".join(["epoch", "step", "train/loss", *names])]
    lines += [f"0,{10 * step},{scale / (1 + step)}{',' * len(names)}" for step in range(STEPS)]
    lines += [f"0,{10 * STEPS},,{40 * scale}{',' * len(tested)}", f"0,0,,,{','.join(map(str, tested.values()))}"]
    (run / "metrics.csv").write_text("\n".join(lines) + "\n")


def write_config(run: Path, data: dict[str, Any], **more: Any) -> None:
    """A `config.yaml` with a few settings."""
    model = {"class_path": "lightning_vos.MAVOS", "init_args": {"network": {"init_args": {"channels": 64}}}}
    (run / "config.yaml").write_text(yaml.safe_dump({"model": model, "data": data, **more}))


def write_followed(runs: Path, shifts: dict[str, int]) -> Path:
    """Runs whose masks are the truth, moved to the right by some pixels; their data is in `data` beside them."""
    root = runs / "data"
    write_davis(root / "DAVIS", SETTINGS)
    truth = root / "DAVIS/Annotations/480p"
    names = (root / "DAVIS/ImageSets/2017/val.txt").read_text().split()
    for name, shift in shifts.items():
        run = runs / name
        for path in (path for sequence in names for path in sorted((truth / sequence).glob("*.png"))):
            write_mask(run / "masks" / path.parent.name / path.name, np.roll(read_mask(path), shift, axis=1))
        scores = score(root / "DAVIS", run, "davis2017", split="val")
        scores.write_csv(run)
        (run / "summary.csv").unlink()
        summary = {f"test/{measure}": scores.summary[measure] for measure in ("J&F", "J", "F")}
        write_logged(run, {**summary, "test/FPS": 30.0 - shift, "test/parameters": 1.5e6}, 1 + shift)
        data = {"class_path": "datamodules.DAVIS", "init_args": {"root": str(root)}}
        write_config(run, data, seed_everything=shift)
    return runs


def write_found(run: Path, shift: int) -> Path:
    """A run of instances: each true track of the hold-out videos, moved, as its own category and with its own score."""
    root = run.parent / "vis"
    write_synthetic_youtube_vis(root / "youtube_vis_2019", SETTINGS)
    content = json.loads((root / "youtube_vis_2019/train.json").read_text())
    sizes = {video["id"]: (video["height"], video["width"]) for video in content["videos"]}
    entries = []
    for number, row in enumerate(row for row in content["annotations"] if not row["iscrowd"]):
        masks = [None if part is None else _moved(part, sizes[row["video_id"]], shift) for part in row["segmentations"]]
        entry = {"video_id": row["video_id"], "category_id": row["category_id"], "score": 0.9 - 0.01 * number}
        entries.append({**entry, "segmentations": masks})
    write_logged(run, {"test/AP": 50.0, "test/FPS": 9.0})
    (run / "results.json").write_text(json.dumps(entries))
    names = {row["id"]: row["name"] for row in content["categories"]}
    (run / "categories.csv").write_text("category,AP\n" + "".join(f"{name},nan\n" for name in names.values()))
    splits = {"val_split": "holdout_val", "test_split": "holdout_val"}
    write_config(run, {"class_path": "datamodules.YouTubeVIS", "init_args": {"root": str(root), **splits}})
    return run


def write_classified(run: Path, classes: tuple[str, ...]) -> Path:
    """A run of label maps: the truth of rendered images, with class 1 said to be class 2."""
    root = run.parent / "images"
    settings = {"layout": "labelled_images", "train": 1, "val": 4, "height": 64, "width": 64}
    write_images(root / "labelled_images", ImageSettings(**settings))
    masks = sorted(path for path in root.rglob("*.png") if path.stem.startswith("val"))
    counts = np.zeros((len(classes), len(classes)), np.int64)
    lines = []
    for path in masks:
        truth = read_mask(path)
        ours = np.where(truth == 1, 2, truth).astype(np.uint8)
        write_mask(run / "masks" / path.name, ours)
        known = truth < len(classes)
        np.add.at(counts, (truth[known], ours[known]), 1)
        lines.append(f"{path.stem},{100 * float((truth == ours)[known].mean())},50.0\n")
    (run / "images.csv").write_text("image,mIoU,pixel_accuracy\n" + "".join(lines))
    table = "".join(f"{name},{','.join(map(str, row))}\n" for name, row in zip(classes, counts, strict=True))
    (run / "confusion.csv").write_text(f"class,{','.join(classes)}\n{table}")
    (run / "classes.csv").write_text("class,IoU,accuracy\n" + "".join(f"{name},50.0,60.0\n" for name in classes))
    write_logged(run, {"test/mIoU": 50.0})
    data = {"class_path": "datamodules.SyntheticImages", "init_args": {"root": str(root), "settings": settings}}
    write_config(run, data)
    return run


def _moved(part: dict[str, Any], size: tuple[int, int], shift: int) -> dict[str, Any]:
    mask = coco.decode(coco.frPyObjects(part, *size))
    moved = coco.encode(np.asfortranarray(np.roll(mask, shift, axis=1)))
    return {"size": list(size), "counts": moved["counts"].decode()}


def pixels_of(uri: str) -> np.ndarray:
    """The picture that a page embeds."""
    kind, _, content = uri.partition(";base64,")
    assert kind == "data:image/jpeg"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))
