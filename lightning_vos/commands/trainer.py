"""`fit`, `validate`, `test` and `predict`: Lightning's command line with short errors, where explicit words win."""

from __future__ import annotations

import inspect
import logging
import netrc
import os
import re
import warnings
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit

import torch
from jsonargparse import Namespace
from jsonargparse.typing import PositiveInt
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_info

from lightning_vos.callbacks.run_files import (
    MODEL,
    SaveRunConfig,
    best_checkpoint,
    discard_unused,
    go_on_writing,
    last_checkpoint,
    newest_run,
    run_folder,
)
from lightning_vos.callbacks.seeding import StepSeed
from lightning_vos.callbacks.wandb_page import kept_run_id
from lightning_vos.commands.effective_batch import fill_steps
from lightning_vos.config_files import Arguments, expand_config_options, sections, without_includes
from lightning_vos.errors import CheckpointError, ConfigError, UserError
from lightning_vos.io.checkpoints import read_checkpoint
from lightning_vos.parse_errors import explain, unknown_key

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_SHOWN = 6  # classes in a message
_UNNAMED = (None, "lightning_logs")
_NOISE = (
    r".*LeafSpec.*is deprecated",  # lightning 2.6.6 on torch 2.15
    r".*predict returned None",  # masks are written as they come
    r".*does not have many workers",  # the recipes choose their workers
    r".*distributed.nn.functional.all_gather is deprecated",  # lightning 2.6.6 on torch 2.15
    r".*Experiment logs directory .* exists and is not empty",  # a resumed run goes on in its folder
    r".*Checkpoint directory .* exists and is not empty",
    r".*You're resuming from a checkpoint that ended before the epoch ended",  # our loaders follow the step
    r".*The dirpath has changed from",  # a test has its own folder
    r".*The number of training batches .* is smaller than the logging interval",
    r".*Grad strides do not match bucket view strides",  # DDP copies such gradients, which are those of small kernels
    r".*WeightAveraging callback, but loading a checkpoint outside the 'fit' stage",  # checkpoints hold the average
    r".*It is recommended to use `self\.log\(.*sync_dist=True",  # scores are gathered before they are logged
    r".*compute.* method of metric RegionBoundary was called before",  # a split without truth says so itself
)


class ParseError(Exception):
    """What the parser refused, in jsonargparse's words."""


class Parser(LightningArgumentParser):
    """Lightning's parser, whose errors are raised for `main` to explain, and which refuses abbreviations.

    jsonargparse makes the parsers of the arguments of classes of the same type, so that they refuse them, too.
    """

    def __init__(self, *args: Any, allow_abbrev: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=allow_abbrev, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raises what jsonargparse would print below its whole list of options.

        Raises:
            ParseError: The parser's own message, unexplained.
        """
        if not self.exit_on_error:  # a trial inside jsonargparse
            super().error(message, ex)
        raise ParseError(message) from ex

    def parse_args(self, args: Any = None, *rest: Any, **kwargs: Any) -> Namespace:  # type: ignore[override]
        """Takes Python's None for YAML's null: sweep agents print it, and so does jsonargparse for nested options."""
        if args is not None:
            args = [f"{word.removesuffix('None')}null" if word.endswith("=None") else word for word in args]
            args = [
                "null" if word == "None" and before.startswith("--") else word for before, word in pairwise(["", *args])
            ]
        return super().parse_args(args, *rest, **kwargs)

    def parse_string(self, content: str, path: str | os.PathLike[str] = "", *args: Any, **kwargs: Any) -> Namespace:
        """Parses a config's text; its `include:` list was followed before."""
        return super().parse_string(without_includes(content, Path(path)), path, *args, **kwargs)


class CLI(LightningCLI):
    """Lightning's command line with this project's defaults.

    Args:
        verb: The method of the trainer to run.
        arguments: The words after `lightning_vos`, and the config files that they stand for.
    """

    def __init__(self, verb: str, arguments: Arguments) -> None:
        self.verb = verb
        self.arguments = arguments
        self.resumed_step: int | None = None
        super().__init__(
            LightningModule,
            LightningDataModule,
            save_config_callback=SaveRunConfig,
            save_config_kwargs={"save_to_log_dir": False},
            trainer_defaults={"use_distributed_sampler": False, "callbacks": [StepSeed()]},
            seed_everything_default=0,
            parser_class=Parser,
            subclass_mode_model=True,
            subclass_mode_data=True,
            args=arguments.words,
            auto_configure_optimizers=False,
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> CLI:
        """Is never copied: the optimizer recipe of a model refers to it, and averaged weights begin with a copy."""
        return self

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The verbs and the arguments of their methods that are no options: checkpoints are read as tensors, always."""
        return {verb: skip | {"weights_only"} for verb, skip in LightningCLI.subcommands().items()}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds what belongs to a training as a whole."""
        parser.add_argument(
            "--effective_batch_size",
            type=PositiveInt | None,
            default=None,
            help="items of an optimizer step, over all devices and accumulated batches; null leaves it to batch_size",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parses the prepared arguments; sys.argv stays as the user wrote it, for other ranks are started by it.

        Raises:
            ConfigError: The settings are not what the parser takes.
        """
        known_keys = list(self._subcommand_parsers[self.verb].get_defaults().keys())
        try:
            self.config = parser.parse_args(self.arguments.words)
        except ParseError as error:
            raise ConfigError(explain(str(error), self.arguments, known_keys)) from None
        known_sections = {key.split(".")[0] for key in known_keys}
        for section in (name for path in self.arguments.files for name in sections(path)):
            if section not in known_sections:  # the parser passes over one that holds nothing
                raise ConfigError(unknown_key(section, known_keys, self.arguments))

    def _parse_ckpt_path(self) -> None:
        # Lightning lets the settings that a checkpoint stored beat explicit words; here they do not count
        return

    def before_instantiate_classes(self) -> None:
        """Names the run, chooses W&B's mode, drops an unwanted bar, finds what `--ckpt_path` means."""
        runs = os.environ.get("LIGHTNING_VOS_RUNS")
        for logger in self._loggers():
            arguments, is_wandb = logger["init_args"], logger["class_path"].endswith("WandbLogger")
            if runs is not None and "save_dir" in arguments:  # a trial of a sweep has a folder of its own
                arguments["save_dir"] = runs
            if is_wandb:
                _choose_wandb_mode(arguments)
            # the trials of a sweep are named by W&B
            if arguments.get("name") in _UNNAMED and not (is_wandb and "WANDB_SWEEP_ID" in os.environ):
                arguments["name"] = self.arguments.recipe
        settings = self.config[self.verb]
        if settings.trainer.enable_progress_bar is False:  # the recipes list their bar
            bars = ("RichProgressBar", "TQDMProgressBar")
            listed = settings.trainer.callbacks or []
            settings.trainer.callbacks = [callback for callback in listed if not callback["class_path"].endswith(bars)]
        if settings.ckpt_path:
            settings.ckpt_path = str(self._find_checkpoint(settings.ckpt_path))

    def instantiate_classes(self) -> None:
        """Builds model, data and trainer.

        Raises:
            UserError: A part refuses its arguments.
        """
        try:
            self._instantiate()
        except (TypeError, ValueError, MisconfigurationException) as wrapper:
            error: BaseException = wrapper
            while error.__cause__ is not None:  # jsonargparse wraps what a nested part raised
                error = error.__cause__
            raise error if isinstance(error, UserError) else ConfigError(_refusal(error, self.arguments)) from error

    def _instantiate(self) -> None:
        super().instantiate_classes()
        size = self.config[self.verb].effective_batch_size
        if self.verb == "fit" and size is not None:
            fill_steps(self.trainer, self.datamodule, size)

    def after_instantiate_classes(self) -> None:
        """Lets a resumed run go on with its table of metrics."""
        if self.resumed_step is not None and self.trainer.is_global_zero and isinstance(self.trainer.logger, CSVLogger):
            go_on_writing(self.trainer.logger, self.resumed_step)

    def _run_subcommand(self, subcommand: str) -> None:
        begins = self.trainer.is_global_zero and not (folder := run_folder(self.trainer)).exists()
        try:
            super()._run_subcommand(subcommand)
        except Exception:
            if begins:
                discard_unused(folder)
            raise

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        return {**super()._prepare_subcommand_kwargs(subcommand), "weights_only": True}

    def _loggers(self) -> Iterator[Namespace]:
        loggers = self.config[self.verb].trainer.logger
        for logger in loggers if isinstance(loggers, list) else [loggers]:
            if isinstance(logger, Namespace):
                yield logger

    def _find_checkpoint(self, word: str) -> Path:
        if word not in ("best", "last"):
            path = Path(word)
            _check_checkpoint(path, self.config[self.verb].model)
            return path
        logger = next(self._loggers(), None)
        if logger is None:
            raise CheckpointError(
                f"--ckpt_path {word} needs a logger, whose folder holds the runs; name a file instead"
            )
        arguments = logger["init_args"]
        run = newest_run(Path(arguments.get("save_dir") or ".") / (arguments.get("project") or arguments["name"]))
        path = last_checkpoint(run) if word == "last" else best_checkpoint(run)
        step = _check_checkpoint(path, self.config[self.verb].model)
        if word == "last" and self.verb == "fit" and logger["class_path"].endswith("CSVLogger"):
            number = run.name.removeprefix("version_")
            # the run goes on in its own folder, with its own best
            arguments["version"] = int(number) if number.isdecimal() else run.name
            self.resumed_step = step
        if word == "last" and self.verb == "fit" and (run_id := kept_run_id(run)) is not None:
            for each in self._loggers():
                if each["class_path"].endswith("WandbLogger"):
                    each["init_args"]["id"] = run_id
                    if "resume" in each["init_args"]:  # its None would win over Lightning's "allow"
                        each["init_args"]["resume"] = "allow"
        return path


class ModelCLI(CLI):
    """Reads and checks a recipe as `test` does, and builds its model alone: no data, no trainer, nothing is run.

    Args:
        configs: What `--config` takes, one or more.
    """

    def __init__(self, configs: Sequence[str]) -> None:
        quieten()
        words = ["test", *(f"--config={name}" for name in configs), "--seed_everything=false"]
        super().__init__("test", expand_config_options(words))

    def before_instantiate_classes(self) -> None:
        """Nothing is logged."""

    def _instantiate(self) -> None:
        settings = Namespace(model=self.config[self.verb].model)  # type: ignore[no-untyped-call]
        self.model = self._subcommand_parsers[self.verb].instantiate_classes(settings).model

    def _run_subcommand(self, subcommand: str) -> None:
        return


def main(argv: list[str]) -> None:
    """Runs one of Lightning's verbs.

    Args:
        argv: The verb and its options.

    Raises:
        UserError: Whatever the user can mend, in at most eight lines.
        KeyboardInterrupt: The run was stopped; its last checkpoint is written.
    """
    quieten()
    torch.set_flush_denormal(True)  # numbers next to nothing, of sharp attention, cost a CPU half its speed
    try:
        CLI(argv[0], expand_config_options(argv))
    except MisconfigurationException as error:
        raise ConfigError(_first_lines(str(error))) from error
    except (RuntimeError, KeyError) as error:
        lost = _lost_process(error)
        if lost is not None:
            raise UserError(lost) from error
        misfit = _misfit(error)
        if misfit is None:
            raise
        raise CheckpointError(misfit) from error
    except SystemExit as stop:
        # Lightning shuts down in order and leaves by status 1
        if isinstance(stop.__context__, KeyboardInterrupt):
            hint = "; the same command with --ckpt_path last goes on from here" if argv[0] == "fit" else ""
            raise KeyboardInterrupt(f"stopped{hint}") from None
        raise


def quieten() -> None:
    """Silence warnings of libraries that say nothing to a user of ours."""
    for message in _NOISE:
        warnings.filterwarnings("ignore", message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "Tip:" not in record.getMessage()
    )


def _choose_wandb_mode(arguments: Namespace) -> None:
    """Keeps a run offline where no key is known, and checkpoints out of what is offline."""
    if "WANDB_MODE" not in os.environ and not arguments.get("offline") and not _wandb_key_is_known():
        os.environ["WANDB_MODE"] = "offline"
        rank_zero_info(
            f"Weights & Biases: no API key was found (`wandb login`, WANDB_API_KEY), so the run is kept offline in "
            f"{Path(arguments.get('save_dir') or '.') / 'wandb'}; `wandb sync` uploads it"
        )
    if arguments.get("offline") or os.environ.get("WANDB_MODE", "online") not in ("online", "run", "shared"):
        arguments["log_model"] = False


def _wandb_key_is_known() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _check_checkpoint(path: Path, model: Namespace) -> int:
    """Refuses a file that is no checkpoint of such a model's training before anything is built; gives its step."""
    checkpoint = read_checkpoint(path)
    if "pytorch-lightning_version" not in checkpoint:
        raise CheckpointError(
            f"{path} holds weights alone, --ckpt_path needs a checkpoint of a training run\n"
            "  give weights by --model.weights FILE; `lightning_vos convert` reads published files"
        )
    theirs, ours = checkpoint.get(MODEL, {}).get("class_path", ""), model["class_path"]
    names: list[str] = checkpoint.get("classes") or []
    held = (
        f"{len(names)} classes ({', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''})" if names else ""
    )
    if all(name.startswith("lightning_vos.") for name in (theirs, ours)) and _method(theirs) != _method(ours):
        raise CheckpointError(
            f"{path} is a checkpoint of another method than the recipe's\n"
            f"  found: {_method(theirs)}{f' of {held}' if names else ''}\n"
            f"  expected: {_method(ours)}\n"
            "  use the recipe that it was trained with, or name a checkpoint of this one"
        )
    expected = model.get("init_args.network.init_args.classes")
    if names and expected is not None and expected != len(names):
        raise CheckpointError(
            f"{path} is a checkpoint of other classes than the recipe's\n"
            f"  found: {_method(theirs)} of {held}\n"
            f"  expected: {expected} classes (model.network.classes)\n"
            "  use the recipe and the data that it was trained with; to train on other classes from its weights, give\n"
            "  --model.weights FILE and --model.weights_may_lack in place of --ckpt_path"
        )
    return int(checkpoint["global_step"])


def _method(class_path: str) -> str:
    return class_path.rpartition(".")[2]


def _refusal(error: BaseException, arguments: Arguments) -> str:
    """Names the part that refused its arguments, the innermost constructor that the error came out of, and where."""
    part = ""
    parameters: tuple[str, ...] = ()
    trace = error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        name = type(frame.f_locals.get("self")).__qualname__
        if frame.f_code.co_name in ("__init__", "__post_init__") and not name.startswith("_"):
            part, parameters = name, tuple(inspect.signature(type(frame.f_locals["self"])).parameters)
        trace = trace.tb_next
    said = _first_lines(str(error)).removeprefix(f"{part}: ")
    refused = next((word for word in re.findall(r"\w+", said) if word in parameters), None)
    where = arguments.find(refused) if refused else ""
    return f"{part or 'a part'} refuses its arguments: {said}{where}"


def _lost_process(error: RuntimeError | KeyError) -> str | None:
    """Says in short that another process of the run has ended; None where the error is another one."""
    from torch.distributed import DistError

    text = str(error)
    if not isinstance(error, DistError) and not ("gloo" in text and "peer" in text):
        return None
    reason = text.splitlines()[0].partition(" This is")[0][:200]
    return (
        f"another process of this run ended, or cannot be reached: {reason}\n"
        "  what it said itself stands above; the same command with --ckpt_path last goes on from the last checkpoint"
    )


def _misfit(error: RuntimeError | KeyError) -> str | None:
    """Says in short that a checkpoint belongs to another model; None where the error is another one."""
    text = str(error)
    if "checkpoint contains only the model" in text:
        return (
            "the checkpoint holds no state of the optimizer, so training cannot go on from it\n"
            "  to start a new training from its weights: --model.weights FILE"
        )
    if "Error(s) in loading state_dict for" not in text:
        return None
    found = [f"  {line.strip()[:150]}" for line in text.splitlines()[1:4]]
    return "\n".join(
        [
            f"the checkpoint does not fit the model{text.splitlines()[0].partition('for')[2]}",
            *found,
            "  use the config.yaml of the run it belongs to, or give weights by --model.weights FILE",
            "  `lightning_vos convert` reads published files",
        ]
    )


def _first_lines(text: str) -> str:
    return "\n".join(line[:300] for line in text.strip().splitlines()[:6])
