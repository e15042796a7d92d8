"""What learns nothing: how far it follows a square that moves."""

import cv2
import numpy as np
import torch

from lightning_vos.callbacks.baselines import OpticalFlow, RepeatFirstMask

SIDE, SQUARE, STEP = 160, 48, 3


def scene(time, rng):
    """A frame and its label map: over a textured ground a textured square of 48 pixels goes right, another down."""
    ground, one, other = (
        cv2.resize(rng.random((20, 20, 3)), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC) for _ in range(3)
    )
    frame, labels = ground.copy(), np.zeros((SIDE, SIDE), np.uint8)
    for number, texture, top, left in ((1, one, 10, 10 + STEP * time), (2, other, 80 + STEP * time, 60)):
        frame[top : top + SQUARE, left : left + SQUARE] = texture[:SQUARE, :SQUARE]
        labels[top : top + SQUARE, left : left + SQUARE] = number
    return torch.from_numpy(frame).permute(2, 0, 1).float().clamp(0, 1), labels


def overlap(found, truth, number):
    return ((found == number) & (truth == number)).sum() / ((found == number) | (truth == number)).sum()


def followed(baseline, given, frames=8):
    """The masks of a video in which some frames are given."""
    found = []
    for time in range(frames):
        frame, truth = scene(time, np.random.default_rng(0))
        found.append((baseline.follow(frame, given.get(time)), truth))
    return found


def test_flow_follows_what_repetition_does_not():
    _, first = scene(0, np.random.default_rng(0))
    for number in (1, 2):
        moved, truth = followed(OpticalFlow(), {0: first})[-1]
        assert overlap(moved, truth, number) > 0.6
        repeated, truth = followed(RepeatFirstMask(), {0: first})[-1]
        assert overlap(repeated, truth, number) < 0.5


def test_an_object_may_come_later():
    _, first = scene(0, np.random.default_rng(0))
    _, later = scene(3, np.random.default_rng(0))
    for baseline in (OpticalFlow(), RepeatFirstMask()):
        found = followed(baseline, {0: first * (first == 1), 3: later * (later == 2)})
        assert set(np.unique(found[2][0])) == {0, 1}
        assert set(np.unique(found[3][0])) == {0, 1, 2}
        assert overlap(*found[3], 2) == 1


def test_nothing_is_known_of_the_next_video():
    _, first = scene(0, np.random.default_rng(0))
    for baseline in (OpticalFlow(), RepeatFirstMask()):
        followed(baseline, {0: first})
        baseline.forget()
        assert all(labels is None for labels, _ in followed(baseline, {}, frames=2))
