"""What a method costs over a video or over images: time and peak of memory of every call, and what they come to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch

from lightning_vos.benchmarks.workload import Setting, SyntheticVideo, peak_bytes, reset_peak, resident_bytes, seconds
from lightning_vos.errors import ConfigError, is_out_of_memory
from lightning_vos.models.taformer.inference import find_instances
from lightning_vos.models.taformer.module import TAFormer
from lightning_vos.models.token_masking.inference import class_maps
from lightning_vos.models.token_masking.module import TokenMasking
from lightning_vos.models.token_masking.pseudo_masks import PixelValues, label_map
from lightning_vos.models.token_masking.segmentation import SegmentationFromMasks, segment
from lightning_vos.module import MethodModule
from lightning_vos.vos.module import VOSModule
from lightning_vos.vos.track import Tracker

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

_SHOWN = 2  # classes that an image shows
_LATE = 0.95  # quantile
_COMPILING = 3  # frames in which all that is compiled is called


class Call(NamedTuple):
    """What one call of a method took: of a frame, an image, or the frames that it sees together."""

    frame: int  # the last that it gave a result of
    frames: int  # that it gave results of
    seconds: float  # network, decoding and memory; CPU time, on a GPU wall time
    peak_bytes: int  # during the call, with weights: allocated on a GPU, else resident, less Python and libraries
    bank_bytes: int | None  # the long-term memories of all objects, of a method that has them
    bank_frames: int | None  # that the fullest of them holds


class VideoCost(NamedTuple):
    """What the calls of a method come to; the first is not counted but in the peak."""

    fps: float  # frames, or images, a second
    median_seconds: float  # of a call
    late_seconds: float  # that 95 % of the calls stay below
    peak_bytes: int
    bank_bytes: int | None  # after the last call


def has_objects(module: MethodModule) -> bool:
    """Whether the cost of a method depends on how many objects the first mask states."""
    return isinstance(module, VOSModule)


def sees_whole_videos(module: MethodModule) -> bool:
    """Whether a method sees frames together, so that a shorter video is not the beginning of a longer one."""
    return isinstance(module, TAFormer)


def set_window(module: MethodModule, window: int | None) -> None:
    """Let a TAFormer or SeqFormer see so many frames at a time; of others nothing changes.

    Raises:
        ConfigError: if it is no longer than what windows share.
    """
    if window is not None and isinstance(module, TAFormer):
        try:
            module.inference = replace(module.inference, window=window)
        except ValueError as error:
            raise ConfigError(f"--window {window} cannot be: {error}") from error


def measure_video(module: MethodModule, setting: Setting, frames: int, *, is_compiled: bool = False) -> Iterator[Call]:
    """Run a method over a synthetic video, or over as many images; results are dropped as they come.

    Making the frames is not timed. A method that sees the whole video at once is run twice, for its first call, as any
    first call, is not representative.

    Args:
        module: Any method, with the settings by which it tests.
        setting: The video, and what the network runs on.
        frames: Length of the video, at least 2.
        is_compiled: Whether `torch.compile` is used: of encoders, decoders and transformers, not of memories.

    Yields:
        One call after the other.

    Raises:
        ConfigError: if the network cannot be compiled.
        DeviceMemoryError: if the device does not hold what is needed.
    """
    setting.prepare()
    device = torch.device(setting.device)
    module.to(device).eval()
    weights = sum(value.nbytes for value in module.state_dict().values())
    aside = 0 if device.type == "cuda" else resident_bytes() - weights  # of Python and libraries
    if is_compiled:
        _compile(module)
    if isinstance(module, VOSModule):
        calls = _tracked(module, setting, frames)
    elif isinstance(module, TAFormer):
        calls = _found(module, setting, frames)
    else:
        calls = _segmented(module, setting, frames)
    try:
        if is_compiled and isinstance(module, VOSModule):  # a decoder is first called in the second frame
            for _ in _tracked(module, setting, _COMPILING):
                pass
        for call in calls:
            yield call._replace(peak_bytes=max(call.peak_bytes - aside, weights))
    except RuntimeError as error:
        if not is_compiled or is_out_of_memory(error):
            raise
        raise ConfigError(f"{type(module).__name__} cannot be compiled here: {str(error).splitlines()[0]}") from error


def _compile(module: MethodModule) -> None:
    network: Any = module.network
    if isinstance(module, VOSModule):
        network.encode = torch.compile(network.encode)
        network.decoder.compile()
    elif isinstance(module, TAFormer):
        network.backbone.compile()
        network.transformer.compile()
    elif isinstance(module, TokenMasking):
        network.vit.compile()
    else:
        network.compile()


def _tracked(module: VOSModule, setting: Setting, frames: int) -> Iterator[Call]:
    """Frame by frame, from the mask of the first on."""
    device = torch.device(setting.device)
    video = SyntheticVideo(setting.size, setting.objects)
    tracker = Tracker(module.network, flip=module.flip, scales=module.scales)
    for number in range(frames):
        frame, mask = video.frame(number), video.first_mask if number == 0 else None
        reset_peak(device)
        began = seconds(device)
        with setting.autocast():
            tracker.step(frame, mask)
        spent = seconds(device) - began
        bank_bytes = sum(memory.bank_bytes for memory in tracker.memories)
        bank_frames = max(memory.bank_frames for memory in tracker.memories)
        yield Call(number, 1, spent, peak_bytes(device), bank_bytes, bank_frames)


def _segmented(module: MethodModule, setting: Setting, frames: int) -> Iterator[Call]:
    """Image by image, to label maps on the host."""
    device = torch.device(setting.device)
    video = SyntheticVideo(setting.size, 1)
    segmented, bands = _segmenter(module, setting.size)
    for number in range(frames):
        image = video.frame(number).repeat(-(-bands // 3), 1, 1)[:bands].to(device)
        reset_peak(device)
        began = seconds(device)
        with setting.autocast():
            segmented(image)
        yield Call(number, 1, seconds(device) - began, peak_bytes(device), None, None)


def _segmenter(module: MethodModule, size: tuple[int, int]) -> tuple[Callable[[Tensor], object], int]:
    """How a method of images makes a label map of one, and the bands that it sees; images show two classes."""
    if isinstance(module, SegmentationFromMasks):
        network, views = module.network, module.views
        return lambda image: segment(network, image, size, views).to(torch.uint8).cpu().numpy(), network.bands
    masker = cast("TokenMasking", module)
    classes = masker.network.classes
    values = PixelValues(tuple(range(1, 1 + classes)), background=0, ignored=255)
    shown = (torch.arange(classes) < _SHOWN).float()
    settings = replace(masker.pseudo_masks, labels="image")

    def of_image(image: Tensor) -> NDArray[np.uint8]:
        maps, probabilities = class_maps(masker.network, image, masker.maps)
        labels = shown.to(image.device)
        return label_map(maps, probabilities, size, values, settings, labels=labels, image=image)

    return of_image, masker.network.vit.settings.bands


def _found(module: TAFormer, setting: Setting, frames: int) -> Iterator[Call]:
    """In windows, or twice in the whole video."""
    network, window = module.network, module.inference.window
    categories = {output: output for output in range(network.classes)}
    video = SyntheticVideo(setting.size, 1)
    for _ in range(2 if window is None or window >= frames else 1):
        handed = _Handed(video, frames, torch.device(setting.device))
        hook = network.register_forward_hook(handed.note_call)
        with setting.autocast():
            find_instances(network, handed, setting.size, categories, module.inference)
        hook.remove()
        handed.end_call()
        yield from handed.calls


class _Handed:
    """The frames of a video, handed out one by one; measures what is done with them, call by call of the network."""

    def __init__(self, video: SyntheticVideo, frames: int, device: torch.device) -> None:
        self.calls: list[Call] = []
        self._video, self._frames, self._device = video, frames, device
        self._spent, self._began = 0.0, 0.0
        self._is_called = False
        self._last = -1
        reset_peak(device)

    def __iter__(self) -> Iterator[Tensor]:
        for number in range(self._frames):
            frame = self._video.frame(number)
            self._began = seconds(self._device)
            yield frame
            self._spent += seconds(self._device) - self._began
            if self._is_called:
                self._end(number)
        self._began = seconds(self._device)

    def note_call(self, *_: object) -> None:
        """The network has been called; its masks are still to be made."""
        self._is_called = True

    def end_call(self) -> None:
        """Nothing comes any more."""
        self._spent += seconds(self._device) - self._began
        if self._is_called:
            self._end(self._frames - 1)
        elif self.calls:  # what puts windows together
            self.calls[-1] = self.calls[-1]._replace(seconds=self.calls[-1].seconds + self._spent)

    def _end(self, number: int) -> None:
        self.calls.append(Call(number, number - self._last, self._spent, peak_bytes(self._device), None, None))
        self._spent, self._is_called, self._last = 0.0, False, number
        reset_peak(self._device)


def cost_of(calls: Sequence[Call]) -> VideoCost:
    """What calls come to, two or more."""
    counted = np.array([call.seconds for call in calls[1:]])
    return VideoCost(
        sum(call.frames for call in calls[1:]) / float(counted.sum()),
        float(np.median(counted)),
        float(np.quantile(counted, _LATE)),
        max(call.peak_bytes for call in calls),
        calls[-1].bank_bytes,
    )


class Curves(NamedTuple):
    """Calls as curves over frame numbers, (T,) each."""

    seconds: NDArray[np.float64]  # of a frame; those that are seen together share them evenly
    peak: NDArray[np.int64]  # bytes
    bank: NDArray[np.int64] | None  # bytes


def curves(calls: Sequence[Call]) -> Curves:
    """Calls as curves; of a method that saw the whole video twice, of the second time."""
    if calls[0].frame == calls[-1].frame:
        calls = calls[1:]
    frames = [call.frames for call in calls]
    banks = [call.bank_bytes for call in calls if call.bank_bytes is not None]
    return Curves(
        np.repeat([call.seconds / call.frames for call in calls], frames),
        np.repeat([call.peak_bytes for call in calls], frames),
        np.array(banks) if banks else None,
    )


class Constancy(NamedTuple):
    """Whether a method goes on as it begins; frames are first <= t < last."""

    steady_from: int | None  # the frame from which on the bank has exactly one size
    is_constant: bool | None  # whether that is in the first half
    early: tuple[int, int]
    late: tuple[int, int]
    late_over_early: float  # median seconds
    late_minus_early_bytes: int  # median peak


def constancy(curve: Curves) -> Constancy:
    """Say whether the bank stays constant, and how late frames compare with early ones.

    The late frames are the last 200, the early ones 100 to 300; of fewer than 500 frames the last tenth and 5 to 15 %.
    """
    frames = len(curve.seconds)
    steady_from = None
    if curve.bank is not None:
        changes = np.flatnonzero(np.diff(curve.bank))
        steady_from = int(changes[-1]) + 1 if len(changes) else 0
    if frames >= 500:
        early, late = slice(100, 300), slice(frames - 200, frames)
    else:
        first = frames // 20
        early = slice(first, max(round(0.15 * frames), first + 1))
        late = slice(min(round(0.9 * frames), frames - 1), frames)
    return Constancy(
        steady_from,
        None if steady_from is None else steady_from <= frames / 2,
        (early.start, early.stop),
        (late.start, late.stop),
        float(np.median(curve.seconds[late]) / np.median(curve.seconds[early])),
        int(np.median(curve.peak[late]) - np.median(curve.peak[early])),
    )
