"""Whatever the masks of later frames hold, prompts and frames are the same bytes: truth cannot reach a network."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from datamodules import DAVIS, LVOS, LongTimeVideo, Mixture, VideoFolder, YouTubeVOS
from datamodules.synthetic_files import SyntheticSettings, write_davis
from datamodules.synthetic_layouts import (
    write_synthetic_long_time_video,
    write_synthetic_lvos,
    write_synthetic_youtube_vos,
)
from lightning_vos.io.masks import read_mask, write_mask

SETTINGS = SyntheticSettings(train=1, val=3, frames=16, height=64, width=80)
KINDS = {
    "davis2016": lambda root: DAVIS(root, 2016),
    "davis2017": DAVIS,
    "mixture": lambda root: Mixture(root, {"davis": DAVIS(".")}, "davis"),
    "folder": lambda root: VideoFolder(root / "DAVIS", "JPEGImages/480p", "Annotations/480p"),
    "youtube_vos": lambda root: YouTubeVOS(root, test_split="holdout_val"),
    "youtube_vos_all_frames": lambda root: YouTubeVOS(root, test_split="holdout_val", all_frames=True),
    "lvos": LVOS,
    "long_time_video": LongTimeVideo,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_davis(root / "DAVIS", SETTINGS)
    write_synthetic_youtube_vos(root / "YouTubeVOS", SETTINGS)
    write_synthetic_lvos(root / "LVOS", SETTINGS)
    write_synthetic_long_time_video(root / "LongTimeVideo", SETTINGS)
    return root


def seen(data):
    """All that a network can get of each video, and the masks of it that are kept from the network."""
    given, hidden = [], []
    for number, sequence in enumerate(data.find("test")):
        item = sequence.load(number)
        video = item.video
        prompts = {frame: prompt.tobytes() for frame, prompt in video.prompts.items()}
        frames = b"".join(frame.numpy().tobytes() for frame in video.frames)
        given.append((item.number, video.name, tuple(video.frame_names), video.size, video.palette, prompts, frames))
        assert item.truth is not None
        hidden += [(path, video.prompts.get(frame)) for frame, path in sequence.masks.items() if frame > 0]
    return given, hidden


def spoil(path: Path, prompt, rng) -> None:
    """Puts noise of the video's own ids wherever the mask is no prompt."""
    mask = read_mask(path)
    known = np.unique(read_mask(min(path.parent.iterdir())))  # the ids of the first mask; others would be prompts
    noise = rng.choice(known, mask.shape).astype(np.uint8)
    write_mask(path, noise if prompt is None else np.where(prompt > 0, prompt, noise))


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_and_frames_do_not_depend_on_later_truth(whole, tmp_path, kind):
    shutil.copytree(whole, tmp_path / "data")
    before, hidden = seen(KINDS[kind](tmp_path / "data"))
    rng = np.random.default_rng(0)
    truth = [path.read_bytes() for path, _ in hidden]
    for path, prompt in hidden:
        spoil(path, prompt, rng)
    assert sum(path.read_bytes() != content for (path, _), content in zip(hidden, truth, strict=True)) > len(hidden) / 2
    after, _ = seen(KINDS[kind](tmp_path / "data"))
    assert before == after


@pytest.mark.parametrize("kind", ["youtube_vos", "lvos"])
def test_even_ids_that_begin_later_are_not_given_early(whole, tmp_path, kind):
    """A mask of all listed ids in every other frame changes no prompt, for the list says where objects begin."""
    shutil.copytree(whole, tmp_path / "data")
    before, hidden = seen(KINDS[kind](tmp_path / "data"))
    for path, prompt in hidden:
        if prompt is None:
            ids = np.arange(64 * 80, dtype=np.uint8).reshape(64, 80) % 5
            write_mask(path, ids)
    after, _ = seen(KINDS[kind](tmp_path / "data"))
    assert before == after
    assert any(len(prompts) > 1 for *_, prompts, _ in before)
