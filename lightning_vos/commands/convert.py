"""`lightning_vos convert`: published files to checkpoints of ours and back, what a file is, closed heads removed."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lightning_vos.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

    from lightning_vos.models.token_masking.network import TokenMaskingNetwork

_RUNS = 5  # of a network, to time it


def inspect(source: Path) -> str:
    """Say what a weight file is, in a few lines."""
    from lightning_vos.io.checkpoints import read_checkpoint, state_dict_of
    from lightning_vos.published import recognize

    content = read_checkpoint(source)
    state = state_dict_of(content, source)
    return _description(source, content, state, recognize(state))


def convert(source: Path, target: Path) -> str:
    """Turn a published file into a checkpoint of ours, or a checkpoint of ours into a published file.

    Args:
        source: The file to read; which way to convert follows from what it is.
        target: The file to write, at once and whole.

    Returns:
        A line that says what was written.

    Raises:
        CheckpointError: if the file cannot be read, or has no counterpart; nothing is written then.
    """
    import torch

    from lightning_vos.io.checkpoints import read_checkpoint, state_dict_of
    from lightning_vos.io.writing import written_beside
    from lightning_vos.published import recognize

    content = read_checkpoint(source)
    state = state_dict_of(content, source)
    name = recognize(state)
    if name is not None:
        converted, kind = _to_ours(state, name, source), "a checkpoint of ours"
    else:
        name, converted = _to_published(state, source)
        kind = "a published file"
    with written_beside(target) as temporary:
        torch.save(converted, temporary)
    return f"{target} is {kind} of {name}, {len(converted['state_dict'])} entries."


def _to_ours(state: dict[str, Tensor], name: str, source: Path) -> dict[str, Any]:
    import yaml

    from lightning_vos.config_files import find_config, shipped_configs
    from lightning_vos.published import METHODS, build, check_fit, token_masking

    method = METHODS[name]
    wanted = method.essential(method.to_published(build(name, state).state_dict()))
    check_fit(method.essential(state), wanted, str(source), f"the published {name}")
    if name in token_masking.NAMES:
        model = _token_masking_model(token_masking.settings(state))
    else:
        recipe = find_config(f"model/{name}.yaml", shipped_configs())
        model = yaml.safe_load(recipe.read_text(encoding="utf-8"))["model"]
    return _checkpoint(method.to_ours(state), model)


def _checkpoint(state: dict[str, Tensor], model: dict[str, Any]) -> dict[str, Any]:
    """The content of a checkpoint of ours that never trained: entries of the network, and what it is built with."""
    import lightning

    return {
        "state_dict": {f"network.{key}": value for key, value in state.items()},
        "model": model,
        "pytorch-lightning_version": lightning.__version__,
        "epoch": 0,
        "global_step": 0,
    }


def _token_masking_model(settings: dict[str, Any]) -> dict[str, Any]:
    """The `model` of a checkpoint with a network of these settings."""
    network = {"class_path": "lightning_vos.models.token_masking.network.TokenMaskingNetwork", "init_args": settings}
    return {"class_path": "lightning_vos.TokenMasking", "init_args": {"network": network}}


def _to_published(state: dict[str, Tensor], source: Path) -> tuple[str, dict[str, Any]]:
    from lightning_vos.published import METHODS, build, check_fit

    for method in dict.fromkeys(METHODS.values()):
        theirs = method.to_published(state)
        name = method.recognize(theirs)
        if name is not None:
            check_fit(state, build(name, theirs).state_dict(), str(source), f"the published {name}")
            return name, {"state_dict": theirs}
    raise CheckpointError(
        f"{source} has no published layout: its {len(state)} entries fit none of {', '.join(METHODS)}.\n"
        "See what it is with `lightning_vos convert FILE --inspect`."
    )


def slim(source: Path, target: Path) -> str:
    """Leave of a checkpoint of a run what loads its network: weights, averaged where the run does, and their settings.

    Args:
        source: The checkpoint.
        target: The file to write, at once and whole. Runs start from it, `test` and `segment` take it; none goes on.

    Returns:
        A line that says what was written.

    Raises:
        CheckpointError: if the file cannot be read, or is none of a run; nothing is written then.
    """
    from io import BytesIO

    import torch

    from lightning_vos.io.checkpoints import read_checkpoint, state_dict_of
    from lightning_vos.io.writing import written_beside

    content = read_checkpoint(source)
    if "pytorch-lightning_version" not in content or "model" not in content:
        raise CheckpointError(
            f"{source} is no checkpoint of a run: it does not say which network its weights belong to.\n"
            "Give one that `lightning_vos fit` left in runs/*/version_*/checkpoints."
        )
    model = content["model"] | {"init_args": content["model"]["init_args"] | {"weights": None}}
    kept = {key: content[key] for key in ("classes", "epoch", "global_step") if key in content}
    file = BytesIO()  # into a file torch would write its name, and here that of the moment
    torch.save(_checkpoint(state_dict_of(content, source), model) | kept, file)
    with written_beside(target) as temporary:
        temporary.write_bytes(file.getbuffer())
    before, after = (path.stat().st_size / 1e6 for path in (source, target))
    return f"{target} has the weights of {source} after {content['global_step']} steps: {after:.1f} of {before:.1f} MB."


class Cost(NamedTuple):
    """What a network takes on this machine's CPU, for one image."""

    parameters: int
    seconds: float  # CPU time of a forward pass, median
    memory_bytes: int  # of weights, and of all else at the peak of a forward pass


def prune(source: Path, target: Path) -> str:
    """Remove the closed heads from weights of token masking, and write what is left.

    Args:
        source: A checkpoint of ours or a published file, with gates.
        target: The checkpoint of ours to write, at once and whole.

    Returns:
        What was removed, how far outputs and maps differ on a random image, what both networks cost, and the words to
        run the smaller one with.

    Raises:
        CheckpointError: if the file cannot be read, or holds another network; nothing is written then.
        ConfigError: if it has no gates.
    """
    import torch

    from lightning_vos.io.checkpoints import read_checkpoint
    from lightning_vos.io.writing import written_beside
    from lightning_vos.published import load_token_masking_network
    from lightning_vos.published.token_masking import pruned_words

    network = load_token_masking_network(source)
    smaller = network.pruned()
    vit, left = network.vit.settings, smaller.open_heads()
    side = vit.grid * vit.patch
    image = torch.randn(1, vit.bands, side, side, generator=torch.Generator().manual_seed(0))
    (logits, maps, _), (same_logits, same_maps, _) = (net.maps(image, vit.depth) for net in (network, smaller))
    content = read_checkpoint(source)
    model = content.get("model") if "pytorch-lightning_version" in content else None
    made = _token_masking_model(_network_settings(smaller))
    if model is not None:
        made = model | {"init_args": model["init_args"] | made["init_args"]}
    names = {"classes": content["classes"]} if "classes" in content else {}
    with written_beside(target) as temporary:
        torch.save(_checkpoint(smaller.state_dict(), made) | names, temporary)
    before, after = (_cost(net, image) for net in (network, smaller))
    rows = (
        ("attention heads", f"{sum(vit.layer_heads)}", f"{sum(left)}"),
        ("parameters", f"{before.parameters / 1e6:.2f} M", f"{after.parameters / 1e6:.2f} M"),
        (f"forward, {side} x {side}", f"{1e3 * before.seconds:.1f} ms", f"{1e3 * after.seconds:.1f} ms"),
        ("memory of it", f"{before.memory_bytes / 1e6:.1f} MB", f"{after.memory_bytes / 1e6:.1f} MB"),
    )
    table = "\n".join(f"  {what:<22}{one:>12}{other:>12}" for what, one, other in (("", "before", "after"), *rows))
    closed = sum(vit.layer_heads) - sum(left)
    removed = f"its {closed} closed heads removed" if closed else "nothing removed but the gates: no head was closed"
    return (
        f"{target} has {removed}. Largest differences on a random "
        f"image: {_difference(logits, same_logits)} of logits, {_difference(maps, same_maps)} of maps.\n{table}\n"
        f"To run it: --model.weights {shlex.quote(str(target))} {pruned_words(left, vit.channels)}"
    )


def _difference(values: Tensor, others: Tensor) -> str:
    return f"{float((values - others).abs().max()):.1e} (the largest is {float(values.abs().max()):.2g})"


def _network_settings(network: TokenMaskingNetwork) -> dict[str, Any]:
    """What a network without gates is built with, as plain values."""
    from dataclasses import asdict

    vit = network.vit.settings
    return {
        "classes": network.classes,
        "vit": asdict(vit) | {"heads": list(vit.layer_heads)},
        "register": network.vit.register is not None,
        "gates": None,
        "classifier": network.classifier_kind,
        "patch_head": network.patch_head is not None,
    }


def _cost(network: TokenMaskingNetwork, image: Tensor) -> Cost:
    from statistics import median

    import torch

    from lightning_vos.benchmarks.frame import allocated_at_peak
    from lightning_vos.benchmarks.workload import seconds

    cpu = torch.device("cpu")
    weights = sum(value.numel() * value.element_size() for value in network.state_dict().values())
    with torch.inference_mode():
        memory = allocated_at_peak(lambda: network(image), cpu)
        spent = []
        for _ in range(_RUNS):
            started = seconds(cpu)
            network(image)
            spent.append(seconds(cpu) - started)
    return Cost(sum(value.numel() for value in network.parameters()), median(spent), weights + memory)


def _description(source: Path, content: dict[str, Any], state: dict[str, Tensor], name: str | None) -> str:
    if name:
        what = f"a published file of {name}"
    elif "pytorch-lightning_version" in content:
        model = content.get("model", {}).get("class_path", "an unnamed model")
        what = f"a checkpoint of {model} after {content.get('global_step', 0)} steps"
    else:
        what = "a plain state dict of no published model that is known here"
    numbers = sum(value.numel() for value in state.values())
    first = "\n".join(f"  {key} {tuple(value.shape)} {value.dtype}" for key, value in list(state.items())[:4])
    said = f"{source} is {what}: {len(state)} entries, {numbers / 1e6:.2f} M numbers.\n{first}\n  ..."
    words = _pruned_words(content)
    return f"{said}\nIts closed heads are removed. To run it: {words}" if words else said


def _pruned_words(content: dict[str, Any]) -> str | None:
    """The words to run a checkpoint with that `prune` wrote, or that a run of such weights did."""
    from lightning_vos.published.token_masking import pruned_words

    network = content.get("model", {}).get("init_args", {}).get("network") or {}
    vit = network.get("init_args", {}).get("vit") or {}
    is_pruned = isinstance(vit.get("heads"), list | tuple)
    return pruned_words(vit["heads"], vit["head_width"]) if is_pruned else None


def main(args: list[str]) -> None:
    """Run `lightning_vos convert` with the words that follow it.

    Raises:
        UserError: The words ask for something that cannot be done.
    """
    parser = argparse.ArgumentParser(
        "lightning_vos convert",
        description="Turn a published file into a checkpoint of ours, or a checkpoint of ours into a published file.",
        allow_abbrev=False,
    )
    parser.add_argument("source", type=Path, metavar="SOURCE", help="the file to read; nothing in it is unpickled")
    parser.add_argument("target", type=Path, metavar="TARGET", nargs="?", help="the file to write")
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument("--inspect", action="store_true", help="say what SOURCE is, and write nothing")
    ways.add_argument(
        "--prune", action="store_true", help="write SOURCE, of token masking, without its closed attention heads"
    )
    ways.add_argument(
        "--weights-only", action="store_true", help="write SOURCE, of a run, without what the run needs to go on"
    )
    words = parser.parse_args(args)
    if not words.inspect and words.target is None:
        raise CheckpointError(
            "Name the file to write, or ask what a file is: lightning_vos convert SOURCE TARGET | --inspect"
        )
    if words.prune:
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else the profiler of the fresh process tells of its own state
    write = prune if words.prune else slim if words.weights_only else convert
    sys.stdout.write((inspect(words.source) if words.inspect else write(words.source, words.target)) + "\n")
