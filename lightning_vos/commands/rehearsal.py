"""Commands of Lightning's verbs, read and built as they will be, and not run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jsonargparse import Namespace

from lightning_vos.commands.trainer import CLI, quieten
from lightning_vos.config_files import expand_config_options


class Rehearsal:
    """Reads commands by the real command line, and builds all parts that they name but the trainer, on no device.

    What was built before is not built again, so that many commands that differ in little cost little more than reading
    them.
    """

    def __init__(self) -> None:
        quieten()
        self._lines: dict[str, _Line] = {}
        self._built: set[str] = set()
        self._found: set[tuple[str, str]] = set()

    def build(self, command: Sequence[str]) -> Namespace:
        """Read and build one command: the verb and its options; gives all its settings.

        Raises:
            UserError: if the command line refuses it, or a part its arguments.
        """
        verb = command[0]
        if verb in self._lines:
            self._lines[verb].read(command)
        else:
            self._lines[verb] = _Line(command, self._built)
        return self._lines[verb].config[verb]

    def find_data(self, verb: str) -> None:
        """Find, or render, the data of the command of this verb that was built last.

        Raises:
            UserError: if some of it is not there, or not as expected.
        """
        settings = self._lines[verb].config[verb].data
        if (verb, str(settings)) not in self._found:
            data = self._lines[verb].instantiate("data")
            data.prepare_data()
            data.setup(verb)
            self._found.add((verb, str(settings)))


class _Line(CLI):
    """The command line of a verb, which is read any number of times: its parser is made once."""

    def __init__(self, command: Sequence[str], built: set[str]) -> None:
        self._built = built
        super().__init__(command[0], expand_config_options(command))

    def read(self, command: Sequence[str]) -> None:
        self.arguments = expand_config_options(command[1:])
        self.parse_arguments(self._subcommand_parsers[self.verb], None)
        self.config = Namespace({"subcommand": self.verb, self.verb: self.config})  # type: ignore[no-untyped-call]
        self.instantiate_classes()

    def before_instantiate_classes(self) -> None:
        """Nothing is logged, and no checkpoint looked for."""

    def _instantiate(self) -> None:
        for name in ("model", "data", "trainer"):  # of the trainer, its callbacks and loggers
            settings = f"{name} {self.config[self.verb][name]}"
            if settings not in self._built:
                with torch.device("meta"):
                    self.instantiate(name)
                self._built.add(settings)

    def instantiate(self, name: str) -> Any:
        """One part of what was read."""
        part = Namespace({name: self.config[self.verb][name]})  # type: ignore[no-untyped-call]
        return self._subcommand_parsers[self.verb].instantiate_classes(part)[name]

    def _run_subcommand(self, subcommand: str) -> None:
        return
