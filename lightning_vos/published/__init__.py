"""Checkpoints of the published implementations: to our networks and back, strictly, one file a method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch

from lightning_vos.errors import CheckpointError
from lightning_vos.io.checkpoints import read_checkpoint, read_state_dict, state_dict_of
from lightning_vos.published import hodor, mavos, qmvos, seqformer, token_masking

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lightning_vos.models.taformer.network import TAFormerNetwork
    from lightning_vos.models.token_masking.network import TokenMaskingNetwork
    from lightning_vos.vos.network import VOSNetwork

    Network = VOSNetwork[Any] | TAFormerNetwork | TokenMaskingNetwork

_Kind = TypeVar("_Kind", bound="nn.Module")

METHODS = {name: method for method in (hodor, mavos, qmvos, seqformer, token_masking) for name in method.NAMES}
"""Published model -> the file here that knows it."""


def load_published(name: str, weights: str | Path | Mapping[str, Any], *, heads: int | None = None) -> Network:
    """The network of a published model with the weights of its published file.

    Args:
        name: One of `METHODS`, such as `mavos_r50`.
        weights: A published file, or its state dict: entry name -> tensor or array.
        heads: Attention heads of a layer, for a file of `token_masking` that does not tell it.

    Returns:
        The network in eval mode, set to what the file was trained with.

    Raises:
        CheckpointError: if the name is unknown, the number of heads is needed or out of place, or the weights lack an
            entry, have one too many or of another shape.
    """
    if name not in METHODS:
        raise CheckpointError(f"No published model is called {name!r}; known are {', '.join(METHODS)}.")
    if heads is not None and name not in token_masking.NAMES:
        raise CheckpointError(f"The name {name} tells how many heads there are: leave heads={heads} out.")
    if isinstance(weights, str | Path):
        return _published_network(name, read_state_dict(Path(weights)), str(weights), heads)
    state = {key: torch.as_tensor(value) for key, value in weights.items()}
    return _published_network(name, state, "The given state dict", heads)


def build(name: str, state: Mapping[str, Tensor], heads: int | None = None) -> Network:
    """The network of a published model with random weights, of the sizes of a state dict where a model has many.

    Args:
        name: One of `METHODS`.
        state: The published state dict.
        heads: As `load_published`.

    Raises:
        CheckpointError: if the number of heads is needed.
    """
    if name in token_masking.NAMES:
        return token_masking.build(name, state, heads)
    return cast("Network", METHODS[name].build(name))


def _published_network(name: str, state: Mapping[str, Tensor], source: str, heads: int | None = None) -> Network:
    method, network = METHODS[name], build(name, state, heads)
    check_fit(method.essential(state), method.essential(method.to_published(network.state_dict())), source, name)
    network.load_state_dict(method.to_ours(state))
    return network.eval()


def load_network(path: str | Path) -> VOSNetwork[Any]:
    """The network of a weight file that says itself what it is: a published file, or a checkpoint of a run.

    Returns:
        The network in eval mode.

    Raises:
        CheckpointError: if the file cannot be read, does not say which network it belongs to, or belongs to one that
            does not follow masks.
    """
    from lightning_vos.vos.network import VOSNetwork

    return _network_of(
        Path(path),
        VOSNetwork,  # type: ignore[type-abstract] # compared with, never called
        "follows no given masks.\n"
        "Expected weights of HODOR, MAVOS, XMem or QMVOS; TAFormer and SeqFormer find instances by themselves.",
    )


def load_instance_network(path: str | Path) -> TAFormerNetwork:
    """As `load_network`, of a network that finds instances by itself.

    Raises:
        CheckpointError: if the file cannot be read, does not say which network it belongs to, or belongs to another.
    """
    from lightning_vos.models.taformer.network import TAFormerNetwork

    return _network_of(
        Path(path),
        TAFormerNetwork,
        "finds no instances by itself.\nGive a mask of the objects, or weights of TAFormer or SeqFormer.",
    )


def load_token_masking_network(path: str | Path) -> TokenMaskingNetwork:
    """As `load_network`, of a network that says where the classes of an image are.

    Raises:
        CheckpointError: if the file cannot be read, does not say which network it belongs to, or belongs to another.
    """
    from lightning_vos.models.token_masking.network import TokenMaskingNetwork

    return _network_of(
        Path(path),
        TokenMaskingNetwork,
        "has no tokens of classes.\nExpected weights of token masking: a checkpoint of a run, or a published file.",
    )


def _network_of(path: Path, kind: type[_Kind], otherwise: str) -> _Kind:
    """The network of a file, if it is of that kind; what it does otherwise, and what to do then, is for the error."""
    network = _network_in(path)
    if not isinstance(network, kind):
        raise CheckpointError(f"{path} holds a {type(network).__name__}, which {otherwise}")
    return network


def _network_in(path: Path) -> nn.Module:
    content = read_checkpoint(path)
    state = state_dict_of(content, path)
    name = recognize(state)
    if name is not None:
        return _published_network(name, state, str(path))
    settings = content.get("model", {})
    if not str(settings.get("class_path", "")).startswith("lightning_vos."):
        raise CheckpointError(
            f"{path} does not say which network its {len(state)} entries belong to:\n"
            "it is no published file that is known here, and no checkpoint of `lightning_vos fit`.\n"
            "See what it is with `lightning_vos convert FILE --inspect`."
        )
    from lightning.pytorch import LightningModule
    from lightning.pytorch.cli import instantiate_module

    arguments = {"_class_path": settings["class_path"], **settings["init_args"], "weights": None}
    module = instantiate_module(LightningModule, arguments)
    network = cast("nn.Module", module.network)
    check_fit(state, network.state_dict(), str(path), settings["class_path"])
    network.load_state_dict(state)
    return network.eval()


def load_weights(network: nn.Module, path: Path, may_lack: Sequence[str] = ()) -> str:
    """Fill a network from a checkpoint of ours or a published file.

    Args:
        network: The network to fill.
        path: The file.
        may_lack: Beginnings of entry names that the file need not have, or may have in another shape; they keep their
            values then, or are converted as `of_single_level` does. Those that the network does not have are left out.

    Returns:
        A line that says what was loaded, and what was not.

    Raises:
        CheckpointError: if the file cannot be read or does not fit; nothing is changed then.
    """
    from lightning_vos.models.taformer.encoder import of_single_level

    state, own = read_state_dict(path), network.state_dict()
    name = recognize(state)
    # What does not fit is told by the names of the file.
    to_ours, to_theirs, essential = dict, dict, dict
    if name:
        method = METHODS[name]
        to_ours, to_theirs, essential = method.to_ours, method.to_published, method.essential
    kept = {key: next(iter(to_ours({key: value})), key) for key, value in state.items()} if may_lack else {}
    left_out = [
        key for key, name_here in kept.items() if name_here not in own and name_here.startswith(tuple(may_lack))
    ]
    state = {key: value for key, value in state.items() if key not in left_out}
    ours = to_ours(state)
    lacked = {
        key: own[key]
        for key in own
        if key.startswith(tuple(may_lack)) and (key not in ours or ours[key].shape != own[key].shape)
    }
    converted = of_single_level(network, {key: ours[key] for key in lacked if key in ours})
    given, wanted = essential(state | to_theirs(lacked | converted)), essential(to_theirs(own))
    source = f"{path} (published {name})" if name else str(path)
    check_fit(given, wanted, source, f"{type(network).__name__} with these settings")
    network.load_state_dict(ours | lacked | converted)
    line = f"Loaded {len(state)} entries from {path} ({'published ' + name if name else 'a checkpoint of ours'})"
    if name in token_masking.NAMES and (unused := len(state) - len(essential(state))):
        line += f", {unused} of which the network never uses"
    if converted:
        line += f", {len(converted)} of which place points on all levels: the rows of stride 32 are taken"
    started = lacked.keys() - converted.keys()
    if not started:
        return f"{line}."
    how = "lacks" if all(key not in ours for key in started) else "lacks or has in another shape"
    return f"{line}; {len(started)} that it {how} start as they were: {', '.join(may_lack)}."


def check_fit(state: Mapping[str, Tensor], own: Mapping[str, Tensor], source: str, target: str) -> None:
    """Refuse a state dict that is not exactly the target's.

    Raises:
        CheckpointError: naming the first entries that are missing, left over, or of another shape.
    """
    missing = [key for key in own if key not in state]
    left_over = [key for key in state if key not in own]
    wrong = [
        f"{key} {tuple(state[key].shape)}, expected {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if missing or left_over or wrong:
        lines = [f"{source} does not fit {target}:"]
        for title, entries in (("missing", missing), ("left over", left_over), ("of another shape", wrong)):
            if entries:
                lines.append(
                    f"  {len(entries)} entries {title}: {', '.join(entries[:3])}{', ...' if len(entries) > 3 else ''}"
                )
        reason = seqformer.PRETRAINING if wrong and seqformer.is_pretraining(state) else None
        reason = reason or token_masking.removed_heads(state, own)
        lines.append(reason or "See what a file is with `lightning_vos convert FILE --inspect`.")
        raise CheckpointError("\n".join(lines))


def recognize(state: Mapping[str, Tensor]) -> str | None:
    """The published model whose layout a state dict has, if any."""
    return next((found for method in set(METHODS.values()) if (found := method.recognize(state))), None)
