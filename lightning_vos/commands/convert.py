"""`lightning_vos convert`: published files to checkpoints of ours and back, and what a file is."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_vos.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor


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
    import lightning
    import yaml

    from lightning_vos.config_files import find_config, shipped_configs
    from lightning_vos.published import METHODS, check_fit

    method = METHODS[name]
    wanted = method.essential(method.to_published(method.build(name).state_dict()))
    check_fit(method.essential(state), wanted, str(source), f"the published {name}")
    model = yaml.safe_load(find_config(f"model/{name}.yaml", shipped_configs()).read_text(encoding="utf-8"))["model"]
    return {
        "state_dict": {f"network.{key}": value for key, value in method.to_ours(state).items()},
        "model": model,
        "pytorch-lightning_version": lightning.__version__,
        "epoch": 0,
        "global_step": 0,
    }


def _to_published(state: dict[str, Tensor], source: Path) -> tuple[str, dict[str, Any]]:
    from lightning_vos.published import METHODS, check_fit

    for method in dict.fromkeys(METHODS.values()):
        theirs = method.to_published(state)
        name = method.recognize(theirs)
        if name is not None:
            check_fit(state, method.build(name).state_dict(), str(source), f"the published {name}")
            return name, {"state_dict": theirs}
    raise CheckpointError(
        f"{source} has no published layout: its {len(state)} entries fit none of {', '.join(METHODS)}.\n"
        "See what it is with `lightning_vos convert FILE --inspect`."
    )


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
    return f"{source} is {what}: {len(state)} entries, {numbers / 1e6:.2f} M numbers.\n{first}\n  ..."


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
    parser.add_argument("--inspect", action="store_true", help="say what SOURCE is, and write nothing")
    words = parser.parse_args(args)
    if not words.inspect and words.target is None:
        raise CheckpointError(
            "Name the file to write, or ask what a file is: lightning_vos convert SOURCE TARGET | --inspect"
        )
    sys.stdout.write((inspect(words.source) if words.inspect else convert(words.source, words.target)) + "\n")
