import re
import zipfile

import numpy as np
import pytest
from PIL import Image

from lightning_vos.io.masks import write_mask


@pytest.fixture
def words(tmp_path):
    """Results of a made-up YouTube-VOS split, the split, and where to pack them."""
    meta = '{"videos": {"0a": {"objects": {"1": {"frames": ["00000", "00005"]}}}}}'
    dataset, results = tmp_path / "valid", tmp_path / "masks"
    (dataset / "JPEGImages/0a").mkdir(parents=True)
    (dataset / "meta.json").write_text(meta)
    for frame in ("00000", "00005"):
        Image.new("RGB", (30, 20)).save(dataset / f"JPEGImages/0a/{frame}.jpg")
        write_mask(results / f"0a/{frame}.png", np.eye(20, 30, dtype=np.uint8))
    return str(results), str(dataset), str(tmp_path / "out.zip"), "--benchmark", "youtube_vos"


def test_packs_and_checks(command, words):
    packed = command("submission", "pack", *words)
    assert (packed.status, packed.err) == (0, "")
    lines = packed.out.splitlines()
    assert re.fullmatch(rf"{words[2]} holds 1 sequence, 2 frames, 1 object in \d\.\d kB\.", lines[0])
    assert "Annotations/<video>/<frame>.png" in lines[1]
    assert lines[2].startswith("Not checked: ")
    assert len(lines) == 3
    with zipfile.ZipFile(words[2]) as archive:
        assert archive.namelist() == ["Annotations/0a/00000.png", "Annotations/0a/00005.png"]
    assert command("submission", "check", words[2], words[1], *words[3:]) == packed


def test_says_what_was_left_out(command, words, tmp_path):
    write_mask(tmp_path / "masks/0a/00003.png", np.zeros((20, 30), np.uint8))
    lines = command("submission", "pack", *words).out.splitlines()
    assert lines[3:] == ["Note: masks left out, of frames that are not asked for: 1."]


def test_what_is_wrong_ends_with_status_2(command, words, tmp_path):
    write_mask(tmp_path / "masks/0a/00000.png", np.full((20, 30), 9, np.uint8))
    (tmp_path / "masks/0a/00005.png").unlink()
    refused = command("submission", "pack", *words)
    assert refused.status == 2
    assert refused.err == (
        f"error: {words[0]} cannot be submitted; nothing was written: 2 problems\n"
        "  0a 00000: extra object: found 9, expected 0, 1\n"
        "  0a 00005: missing frame: no mask of it is there\n"
        "Mend the results and pack them again.\n"
    )
    assert not (tmp_path / "out.zip").exists()


@pytest.mark.parametrize("more", [(), ("--benchmark", "davis"), ("--bench", "voc")])
def test_wrong_words(command, words, more):
    refused = command("submission", "pack", *words[:3], *more)
    assert refused.status == 2
    assert "--benchmark" in refused.err
