"""What the verbs of `lightning_vos benchmark` share: recipes with random weights, and what they run on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from lightning_vos.commands.inputs import add_device_option, choose_device
from lightning_vos.errors import ConfigError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from rich.console import Console

    from lightning_vos.benchmarks.workload import Setting
    from lightning_vos.module import MethodModule
    from lightning_vos.vos.module import VOSModule

Module = TypeVar("Module")

_CHECKPOINTING = "model: {init_args: {activation_checkpointing: true}}\n"


def build_module(recipe: str, *, is_checkpointed: bool = False) -> MethodModule:
    """The module of a recipe with random weights, the same each time.

    Args:
        recipe: Names or paths of configs as `--config` takes them, joined by `+`; the suffix may be left out.
        is_checkpointed: Whether its training computes activations again instead of keeping them.

    Raises:
        ConfigError: if a config is missing or wrong, or its model is none of ours.
    """
    from tempfile import TemporaryDirectory

    import torch

    from lightning_vos.commands.trainer import ModelCLI
    from lightning_vos.module import MethodModule

    torch.manual_seed(0)
    names = [name if name.endswith((".yaml", ".yml")) else f"{name}.yaml" for name in recipe.split("+")]
    with TemporaryDirectory() as folder:
        if is_checkpointed:
            option = Path(folder) / "activation_checkpointing.yaml"
            option.write_text(_CHECKPOINTING, encoding="utf-8")
            names.append(str(option))
        model = ModelCLI(names).model
    if not isinstance(model, MethodModule):
        raise ConfigError(
            f"{recipe} has no network to measure: {type(model).__qualname__} is no method of lightning_vos.\n"
            "  expected a recipe such as mavos_mobilenetv2"
        )
    return model


def vos_module(recipe: str, *, is_checkpointed: bool = False) -> VOSModule:
    """As `build_module`, of a recipe that segments videos frame by frame.

    Raises:
        ConfigError: as `build_module`, or if it does not.
    """
    from lightning_vos.vos.module import VOSModule

    model = build_module(recipe, is_checkpointed=is_checkpointed)
    if not isinstance(model, VOSModule):
        raise ConfigError(
            f"{recipe} cannot be measured so: {type(model).__qualname__} does not segment videos frame by frame.\n"
            "  expected a recipe such as mavos_mobilenetv2; `benchmark video` takes any"
        )
    return model


def labels_of(recipes: Sequence[str]) -> list[str]:
    """What recipes are called in tables, and their files: without folders and suffixes.

    Raises:
        ConfigError: if two are called alike.
    """
    labels = ["+".join(Path(name).stem for name in recipe.split("+")) for recipe in recipes]
    if twice := {label for label in labels if labels.count(label) > 1}:
        raise ConfigError(f"Two recipes are called {min(twice)}, so their results could not be told apart. Rename one.")
    return labels


def check(recipes: Sequence[str], console: Console, build: Callable[[str], Module]) -> list[Module]:
    """Refuse a recipe that cannot be built, before the first is measured."""
    with console.status("building the recipes"):
        modules = [build(recipe) for recipe in recipes]
    console.print("Weights are random, the video is synthetic: costs are real, masks mean nothing.", soft_wrap=True)
    return modules


def clock_name(setting: Setting) -> str:
    """Which time `benchmarks.workload.seconds` tells."""
    return "CPU" if setting.device_type == "cpu" else "wall"


def add_recipes(parser: argparse.ArgumentParser) -> None:
    """Add RECIPE, one or more."""
    parser.add_argument(
        "recipes",
        nargs="+",
        metavar="RECIPE",
        help="a config such as mavos_mobilenetv2, or several joined by +: mavos_mobilenetv2+memory/focal",
    )


def add_video_options(parser: argparse.ArgumentParser) -> None:
    """Add --size and --objects of one synthetic video."""
    parser.add_argument("--size", type=int, nargs=2, default=(480, 854), metavar=("H", "W"), help="of the frames")
    parser.add_argument("--objects", type=int, default=2, help="in the first mask (2)")


def add_setting_options(parser: argparse.ArgumentParser) -> None:
    """Add --precision, --threads and --device."""
    parser.add_argument("--precision", choices=("32", "bf16"), default="32", help="bf16 is autocast")
    add_device_options(parser)


def add_device_options(parser: argparse.ArgumentParser) -> None:
    """Add --threads and --device, which `device_and_threads` reads."""
    parser.add_argument("--threads", type=int, help="of the CPU (1 where it does the work)")
    add_device_option(parser)


def device_and_threads(words: argparse.Namespace) -> tuple[str, int | None]:
    """What --device and --threads say.

    Raises:
        ConfigError: if the device cannot be used here.
    """
    device = choose_device(words.device)
    return str(device), 1 if words.threads is None and device.type == "cpu" else words.threads


def setting_of(words: argparse.Namespace) -> Setting:
    """What options say of one synthetic video.

    Raises:
        ConfigError: if they go beyond what can be measured.
    """
    from lightning_vos.benchmarks.workload import Setting

    device, threads = device_and_threads(words)
    return Setting(tuple(words.size), words.objects, device, threads, words.precision)
