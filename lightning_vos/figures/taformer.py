"""What TAFormer makes of a video on its way to instances: encoder features and box queries (TAFormer, Figures 5 and 6).

Shapes: T frames, n instances, h w the grid of stride 8.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from lightning_vos.callbacks.instances import MIN_SCORE
from lightning_vos.errors import ConfigError, DeviceMemoryError, is_out_of_memory
from lightning_vos.io.checkpoints import read_checkpoint
from lightning_vos.io.plots import EmbeddedQueries, FeatureMaps
from lightning_vos.models.taformer.inference import InferenceSettings, find_instances, shown
from lightning_vos.published import load_instance_network

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from torch import Tensor

    from lightning_vos.io.frames import FrameFolder
    from lightning_vos.io.video import VideoFile
    from lightning_vos.models.taformer.network import TAFormerNetwork

_STRIDE = 8  # of the encoder's finest level
_MOST_DRAWN = 10  # instances, as many as there are colours
_PERPLEXITY = 30.0


class Model(NamedTuple):
    """A network, and what a figure calls it."""

    name: str
    network: TAFormerNetwork
    settings: InferenceSettings  # of its training, but without windows


def load_models(weights: Iterable[tuple[str, Path]], device: torch.device) -> list[Model]:
    """The networks of checkpoints of runs, or of published files.

    Raises:
        CheckpointError: if a file cannot be read, or belongs to a network that finds no instances by itself.
    """
    models = []
    for name, path in weights:
        arguments: Mapping[str, Any] = read_checkpoint(path).get("model", {}).get("init_args", {})
        settings = replace(InferenceSettings(**arguments.get("inference", {})), window=None)
        models.append(Model(name, load_instance_network(path).to(device), settings))
    return models


def read_clip(model: Model, video: FrameFolder | VideoFile, length: int | None) -> Tensor:
    """The first `length` frames of a video, all where None, as a network sees them: (T, 3, H, W) uint8."""
    return torch.stack([shown(frame, model.settings.short_side) for frame in islice(video, length)])


@torch.no_grad()
def encoder_features(model: Model, clip: Tensor) -> FeatureMaps:
    """The encoder's features at stride 8 (TAFormer, Figure 5): the mean over channels, from 0 to 1 over the clip.

    Args:
        model: Whose encoder.
        clip: (T, 3, H, W) uint8.

    Raises:
        DeviceMemoryError: if the device does not hold what the network needs for so many frames.
    """
    kept: list[Tensor] = []
    hook = model.network.transformer.register_forward_hook(lambda _, __, output: kept.append(output.memory[0][0]))
    device = next(model.network.parameters()).device
    height, width = clip.shape[2:]
    try:
        with _within_memory(model):
            model.network(clip.to(device)[None] / 255, torch.tensor([[height, width]], device=device))
            means = kept[0].float().mean(dim=1)
    finally:
        hook.remove()
    low, high = means.aminmax()
    maps = ((means - low) / (high - low).clamp(min=torch.finfo().tiny)).cpu().numpy()
    return FeatureMaps(model.name, maps, (_STRIDE * maps.shape[1] / height, _STRIDE * maps.shape[2] / width))


def require_tsne() -> None:
    """Refuse to begin where t-SNE is not installed.

    Raises:
        ConfigError: if it is not.
    """
    if find_spec("sklearn") is None:
        raise ConfigError(
            "t-SNE is that of scikit-learn, which is not installed.\n"
            "Install it: pip install 'lightning-vos[figures]', or pip install scikit-learn."
        )


def embedded_queries(model: Model, video: FrameFolder | VideoFile, length: int | None) -> EmbeddedQueries:
    """The box queries of a video's instances in the plane, by t-SNE with a fixed seed (TAFormer, Figure 6).

    Instances are those with a score of 0.3 or more, at most ten; where there are fewer than two, the two best.

    Args:
        model: What finds the instances. The video is one clip, whatever its settings say.
        video: The frames.
        length: How many of them are seen, from the first on; None: all.

    Raises:
        ConfigError: if there are no two instances.
        DeviceMemoryError: if the device does not hold what the network needs for so many frames.
    """
    from sklearn.manifold import TSNE

    network = model.network
    outputs = {output: output for output in range(network.first_class, network.classes)}
    with _within_memory(model):
        found = find_instances(network, islice(video, length), video.size, outputs, model.settings)
    scores = {result.instance: result.score for result in reversed(found.results)}  # the highest of each instance
    best = sorted(scores, key=lambda instance: -scores[instance])[:_MOST_DRAWN]
    sure = [instance for instance in best if scores[instance] >= MIN_SCORE]
    drawn = sure if len(sure) >= 2 else best[:2]
    if len(drawn) < 2:
        raise ConfigError(
            f"{model.name} finds too few instances in the video to compare their queries: {len(drawn)}, expected two.\n"
            "Name another video, or weights that were trained for longer."
        )
    queries = torch.stack([found.box_queries[instance] for instance in drawn]).float()
    many = queries.shape[0] * queries.shape[1]
    embedding = TSNE(perplexity=min(_PERPLEXITY, (many - 1) / 3), random_state=0)
    points = embedding.fit_transform(queries.flatten(0, 1).numpy()).reshape(*queries.shape[:2], 2)
    return EmbeddedQueries(model.name, points, [scores[instance] for instance in drawn])


@contextmanager
def _within_memory(model: Model) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if not (isinstance(error, DeviceMemoryError) or is_out_of_memory(error)):
            raise
        raise DeviceMemoryError(
            f"Out of memory: {model.name} sees all frames at once.\n"
            "Let it see the first ones alone, such as --frames 18."
        ) from error
