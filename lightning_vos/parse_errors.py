"""Says in a few lines what jsonargparse says in fifty: which key, where, what was found, what fits.

jsonargparse tells of a mistake in a nested part by a text that is indented once a level, with every branch of every
union. The innermost statement is the one that matters; the lines above it, less indented, name the way to it.
"""

from __future__ import annotations

import difflib
import inspect
import re
from importlib import import_module
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lightning_vos.config_files import Arguments

_KEY = re.compile(r'Parser key "(?P<key>[^"]+)"')
_CLASS = re.compile(r"Problem with given class_path '(?P<path>[^']+)'")
_UNKNOWN = re.compile(r"Option '(?P<key>[^']+)' is not accepted")
_UNKNOWN_IN_GROUP = re.compile(r"(?:Subcommand|Group) '(?P<group>[^']+)' does not accept option '(?P<key>[^']+)'")
_UNRECOGNIZED = re.compile(r"unrecognized arguments: (?P<words>.*)")
_NO_ATTRIBUTE = re.compile(r"module '(?P<module>[^']+)' has no attribute '(?P<name>[^']+)'")
_NO_MODULE = re.compile(r"No module named '(?P<module>[^']+)'")
_BARE_NAME = re.compile(r"Expected a dot import path string: (?P<name>\S+)")
_EXPECTED = re.compile(r"Expected an? (?!path but)(?P<type>.*?)(?:\. Got value: (?P<value>.*))?$")
_SUBTYPES = re.compile(r"Subtypes: \[(?P<types>.*)\]$")
_GIVEN = re.compile(r"Given value: (?P<value>.*)$")
_NESTED = re.compile(r"NestedArg\(key='(?P<key>.*?)', val='?(?P<value>.*?)'?\)$")
_CALLABLE = re.compile(r"expects a function or a callable class: .*\(class_path='(?P<path>[^']+)'")
_REQUIRED = re.compile(r"arguments are required: (?P<keys>.*)")


def explain(message: str, arguments: Arguments, known_keys: Iterable[str]) -> str:
    """The few lines that tell a user what jsonargparse's `message` means.

    Args:
        message: The text of the parser's error.
        arguments: Where the settings were written.
        known_keys: The dotted keys that the verb's parser takes.
    """
    if match := _UNRECOGNIZED.match(message):
        word = match["words"].split()[0]
        if not word.startswith("-"):
            return f"{word!r} is not an option; options are written --key=value or --config FILE"
        return unknown_key(word.lstrip("-").partition("=")[0], known_keys, arguments)
    if match := _UNKNOWN_IN_GROUP.match(message):
        return unknown_key(match["key"], known_keys, arguments)
    if match := _REQUIRED.search(message):
        missing = " and ".join(key.split(".")[-1] for key in match["keys"].split(", "))
        return f"no {missing} given\n  name a recipe: --config configs/RECIPE.yaml"
    return _explain_nested(message.splitlines(), arguments)


def _explain_nested(lines: list[str], arguments: Arguments) -> str:
    statements = (_UNKNOWN, _UNRECOGNIZED, _UNKNOWN_IN_GROUP, _NO_ATTRIBUTE, _NO_MODULE, _BARE_NAME, _EXPECTED)
    hits = [number for number, line in enumerate(lines) if any(statement.search(line) for statement in statements)]
    if not hits:
        return "\n".join(line for line in lines if line.strip())[:600]
    # "Expected a <class 'NoneType'>" is the other branch of every optional part
    number = max(hits, key=lambda hit: (_indent(lines[hit]), "NoneType" not in lines[hit], -hit))
    keys, classes = _way_to(lines, number)
    line = lines[number]
    if match := _UNKNOWN.search(line):
        owner = _CALLABLE.search(line)
        class_path = owner["path"] if owner else classes[-1] if classes else ""
        return _unknown_parameter([*keys, match["key"]], class_path, arguments)
    if match := _UNRECOGNIZED.search(line):
        key = match["words"].split()[0].lstrip("-").partition("=")[0]
        return _unknown_in_group(keys, key, classes[-1], arguments)
    if match := _UNKNOWN_IN_GROUP.search(line):
        return _unknown_in_group(keys, f"{match['group']}.{match['key']}", classes[-1], arguments)
    if match := _NO_ATTRIBUTE.search(line):
        return _unknown_class(f"{match['module']}.{match['name']}", keys, arguments, _public_names(match["module"]))
    if match := _NO_MODULE.search(line):
        return _unknown_class(classes[-1] if classes else match["module"], keys, arguments, ())
    if match := _BARE_NAME.search(line):
        return _unknown_class(match["name"], keys, arguments, ())
    return _wrong_value(lines, number, keys, arguments)


def _way_to(lines: list[str], number: int) -> tuple[list[str], list[str]]:
    """The keys and the classes that lead to a line: the nearest ones above it, each less indented than the next."""
    keys: list[str] = []
    classes: list[str] = []
    indent = _indent(lines[number]) + 1
    for line in reversed(lines[: number + 1]):
        if not line.strip() or _indent(line) >= indent:
            continue
        key, class_path = _KEY.search(line), _CLASS.search(line)
        if key:
            keys.insert(0, key["key"])
        if class_path:
            classes.insert(0, class_path["path"])
        if key or class_path:
            indent = _indent(line)
    return keys, classes


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" -"))


def unknown_key(key: str, known: Iterable[str], arguments: Arguments) -> str:
    """The few lines that tell of a key that the verb's parser does not take.

    Args:
        key: The dotted key.
        known: As `explain`'s `known_keys`.
        arguments: Where the settings were written.
    """
    known = list(known)
    head, leaf = key.split(".")[0], key.split(".")[-1]
    near = difflib.get_close_matches(key, known, n=1) or difflib.get_close_matches(
        head, sorted({name.split(".")[0] for name in known}), n=1
    )
    hint = f"\n  did you mean {near[0]!r}?" if near and near[0] != head else ""
    where = arguments.find(leaf) or arguments.find(head)
    return f"unknown key {key!r}{where}{hint}\n  `--print_config` shows every key with its value"


def _unknown_parameter(keys: list[str], class_path: str, arguments: Arguments) -> str:
    return _unknown_name(keys, class_path, _parameters(class_path), arguments)


def _unknown_in_group(keys: list[str], key: str, class_path: str, arguments: Arguments) -> str:
    """A key below an argument whose own arguments the class's parser lists, as it does those of dataclasses."""
    *groups, leaf = key.split(".")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(_named(class_path))
    group = "".join(f"{name}." for name in groups)
    known = parser.get_defaults().keys()
    names = [name.removeprefix(group) for name in known if name.startswith(group)]
    return _unknown_name([*keys, *groups, leaf], ".".join([*keys, *groups]), names, arguments)


def _unknown_name(keys: list[str], owner: str, parameters: list[str], arguments: Arguments) -> str:
    near = difflib.get_close_matches(keys[-1], parameters, n=1)
    takes = ", ".join(parameters) or "no options"
    return (
        f"unknown key {'.'.join(keys)!r}{arguments.find(keys[-1])}\n"
        f"  {owner} takes: {takes[:200]}{'...' if len(takes) > 200 else ''}"
        + (f"\n  did you mean {near[0]!r}?" if near else "")
    )


def _unknown_class(name: str, keys: list[str], arguments: Arguments, neighbours: Iterable[str]) -> str:
    candidates = [*neighbours, *_public_names("lightning_vos"), *_public_names("datamodules")]
    leaves = {candidate.rsplit(".", 1)[-1]: candidate for candidate in reversed(candidates)}
    near = difflib.get_close_matches(name, candidates, n=1)
    near = near or [leaves[leaf] for leaf in difflib.get_close_matches(name.rsplit(".", 1)[-1], leaves, n=1)]
    return (
        f"there is no class {name!r}{arguments.find(name)}\n  key: {'.'.join(keys)}\n"
        "  expected: the import path of a class, such as lightning_vos.MAVOS or datamodules.DAVIS"
        + (f"\n  did you mean {near[0]!r}?" if near else "")
    )


def _wrong_value(lines: list[str], number: int, keys: list[str], arguments: Arguments) -> str:
    match = _EXPECTED.search(lines[number])
    expected, found = (match["type"], match["value"]) if match else ("", None)
    if found is None:
        above = [hit for line in lines[:number] if (hit := _SUBTYPES.search(line))]
        below = [hit for line in lines[number:] if (hit := _GIVEN.search(line))]
        expected = above[-1]["types"] if above else expected
        found = below[0]["value"] if below else ""
    expected = _in_words(expected)
    if nested := _NESTED.match(found):
        keys = [keys[0], *(key for key in nested["key"].split(".") if key != "init_args")]
        found = nested["value"]
    words = [keys[-1].split(".")[-1], *re.findall(r"[\w.-]+", found)[:1]] if keys else [found]
    return (
        f"wrong value for {'.'.join(keys)!r}{arguments.find(*words)}\n"
        f"  found: {found[:150]}\n  expected: {expected[:250]}"
    )


def _in_words(expected: str) -> str:
    """A type as people say it: "mean, otsu or a number" for `Literal['mean', 'otsu'] | float`."""
    expected = re.sub(r"<class '(.*?)'>", r"\1", expected).replace("typing.", "").replace("NoneType", "null")
    words = re.sub(r"Literal\[(.*?)\]", lambda literal: literal[1].replace("'", ""), expected)
    return re.sub(r"(.+), float$", r"\1 or a number", words)


def _parameters(class_path: str) -> list[str]:
    found = _named(class_path)
    owners = inspect.getmro(found) if inspect.isclass(found) else ()
    names: dict[str, None] = {}
    for owner in owners:
        if "__init__" in vars(owner) and owner is not object:
            parameters = inspect.signature(vars(owner)["__init__"]).parameters.values()
            names |= dict.fromkeys(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
            if not any(p.kind is p.VAR_KEYWORD for p in parameters):
                break
    names.pop("self", None)
    return list(names)


def _named(class_path: str) -> Any:
    module, _, name = class_path.rpartition(".")
    return getattr(import_module(module), name, None) if module else None


def _public_names(module: str) -> list[str]:
    found = import_module(module)
    names = getattr(found, "__all__", None) or [name for name in dir(found) if not name.startswith("_")]
    return [f"{module}.{name}" for name in names]
