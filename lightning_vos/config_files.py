"""Config files: where a name is looked for, and which other files a config builds on.

A config may begin with `include: [base.yaml, data/davis2017.yaml, ...]`. The included files are read before it, left
to right, exactly as if they had been given as `--config` options, so that its own keys win. A name is looked for beside
the file that includes it (on the command line: in the working directory), then among the configs of the package.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import yaml

from lightning_vos.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence


class Arguments(NamedTuple):
    """The words of a command line, with each `--config` replaced by one option for each file that it stands for."""

    words: list[str]
    files: list[Path]  # in the order in which they are read
    recipe: str  # the name of the first config without its suffix, which names the run

    def find(self, *words: str) -> str:
        """The last place where all the words stand on one line, as a line of a message; empty where there is none."""
        holds = [re.compile(rf"(?<!\w){re.escape(word)}(?!\w)") for word in words]
        for arg in self.words:
            if not arg.startswith("--config=") and all(word.search(arg) for word in holds):
                return f"\n  in: the command line, {arg[:100]}"
        for path in reversed(self.files):
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
                if all(word.search(line.partition("#")[0]) for word in holds):
                    return f"\n  in: {path}, line {number}"
        return self.find(words[0]) if len(words) > 1 else ""


def shipped_configs() -> Path:
    """The folder of the configs that come with the package, in a wheel and in a checkout."""
    packaged = Path(__file__).parent / "_configs"
    return packaged if packaged.is_dir() else Path(__file__).parents[1] / "configs"


def find_config(name: str, folder: Path) -> Path:
    """The config file that `name` stands for: in `folder` first, then among the shipped ones.

    Raises:
        ConfigError: There is no such file in either place.
    """
    shipped = shipped_configs()
    for candidate in (folder / name, shipped / name.removeprefix("configs/")):
        if candidate.is_file():
            return candidate
    known = sorted(path.relative_to(shipped).as_posix() for path in shipped.rglob("*.yaml"))
    near = difflib.get_close_matches(name.removeprefix("configs/"), known, n=3)
    raise ConfigError(
        f"config file {name!r} does not exist\n"
        f"  looked in: {folder.resolve()} and {shipped}\n"
        f"  {'nearest' if near else 'shipped'}: {', '.join(near or known)}"
    )


def with_included(path: Path, chain: tuple[Path, ...] = ()) -> list[Path]:
    """The files that a config stands for, in the order in which they are read; itself last.

    Raises:
        ConfigError: A file is missing, is no YAML mapping, or includes itself.
    """
    if path.resolve() in chain:
        raise ConfigError(f"{path} includes itself by way of {', '.join(map(str, chain))}")
    paths: list[Path] = []
    for name in _split_includes(path.read_text(encoding="utf-8"), path)[0]:
        included = with_included(find_config(name, path.parent), (*chain, path.resolve()))
        paths += [part for part in included if part not in paths]
    return [*paths, path]


def sections(path: Path) -> list[str]:
    """The keys at the top of a config, less `include` and the `+` of those that add to a list."""
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    return [str(key).removesuffix("+").split(".")[0] for key in settings if key != "include"]


def without_includes(text: str, source: Path) -> str:
    """The text of a config less its `include:` list."""
    return _split_includes(text, source)[1]


def expand_config_options(args: Sequence[str]) -> Arguments:
    """Finds the file of every `--config NAME` and follows its includes.

    Raises:
        ConfigError: A config or a file that it includes is missing or no YAML mapping.
    """
    words: list[str] = []
    files: list[Path] = []
    recipe = ""
    rest = iter(args)
    for arg in rest:
        option, separator, value = arg.partition("=")
        if option not in ("-c", "--config"):
            words.append(arg)
            continue
        name = value if separator else next(rest, "")
        if not name:
            raise ConfigError(f"{option} needs the name of a config file")
        paths = with_included(find_config(name, Path()))
        words += [f"--config={path}" for path in paths]
        files += paths
        recipe = recipe or paths[-1].stem
    return Arguments(words, files, recipe or "run")


def _split_includes(text: str, source: Path) -> tuple[list[str], str]:
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{source}{where} is not valid YAML: {getattr(error, 'problem', error)}") from error
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{source} must hold keys and values such as `model:` and `data:`")
    for key, value in root.value:
        if key.value == "config":
            raise ConfigError(f"{source} says `config:`; a config builds on others by `include: [{value.value}]`")
        if key.value != "include":
            continue
        if not isinstance(value, yaml.SequenceNode) or not all(isinstance(item.value, str) for item in value.value):
            found = text[value.start_mark.index : value.end_mark.index].strip()
            raise ConfigError(f"{source}: `include` must be a list of file names, found {found!r}")
        names = [item.value for item in value.value]
        if len(root.value) == 1:
            return names, "{}"  # what is left is no mapping, which a config has to be
        return names, text[: key.start_mark.index] + text[value.end_mark.index :]
    return [], text
