"""The front door: answers `--help` and wrong verbs at once, sends the rest on to the module of its verb."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from lightning_vos.errors import UserError

VERBS = (
    ("fit", "train a recipe: fit --config configs/mavos_r50.yaml", "trainer"),
    ("validate", "score a checkpoint on the hold-out sequences", "trainer"),
    ("test", "score a checkpoint on a benchmark", "trainer"),
    ("predict", "write the masks of a dataset", "trainer"),
    ("segment", "segment a video, given the mask of its first frame or weights that find instances", "segment"),
    ("score", "score masks, tracks or label maps as the benchmarks do", "score"),
    ("convert", "turn a published checkpoint into one of ours", "convert"),
    ("data", "check, prepare or look at a dataset, or write a synthetic one", "data"),
    ("benchmark", "measure what recipes, loading and scoring cost in time and memory", "benchmark"),
    ("experiment", "run tables of the papers and comparisons row by row, or a sweep", "experiment"),
    ("report", "make a page of runs, or draw figures of runs, memories and attention", "report"),
    ("submission", "pack results for a benchmark's server, or check a packed file", "submission"),
)
_OUT_OF_MEMORY = """Out of memory: {}
  In training, make it need less: --data.batch_size (a step stays what effective_batch_size says),
  --trainer.precision 16-mixed, smaller images (--data.transform.crop; TAFormer: --data.augmentation.short_sides,
  --data.length), --model.activation_checkpointing true where objects are followed, or a smaller network."""


def main() -> None:
    """Runs the command line; ends with status 2 and a few lines on whatever the user can mend."""
    args = sys.argv[1:]
    if not args or args[0] in ("-h", "--help"):
        sys.stdout.write(_overview())
        return
    if args[0] in ("-V", "--version"):
        from lightning_vos import __version__

        sys.stdout.write(f"lightning_vos {__version__}\n")
        return
    module = next((module for verb, _, module in VERBS if verb == args[0]), None)
    if module is None:
        _refuse(_wrong_verb(args[0]))
    _run(module, args)


def _run(module: str, args: list[str]) -> None:
    from lightning_vos.errors import UserError, is_out_of_memory

    try:
        _check_datamodules()
        command = import_module(f"lightning_vos.commands.{module}")
        command.main(args if module == "trainer" else args[1:])
    except KeyboardInterrupt as stop:
        sys.stderr.write(f"\n{str(stop) or 'interrupted'}\n")
        sys.exit(130)
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, UserError):
            cause = cause.__cause__ or cause.__context__
        if cause is None and isinstance(error, OSError) and error.filename is not None:
            _refuse(f"{error.strerror}: {error.filename}\n  expected a place that can be read and written")
        if cause is None and is_out_of_memory(error):
            _refuse(_OUT_OF_MEMORY.format(str(error).splitlines()[0]))
        if cause is None:
            raise
        _refuse(_text(cause))


def _text(error: UserError) -> str:
    # an error of a loader's worker carries the worker's traceback as its message
    name = type(error).__qualname__
    return str(error).rsplit(f"{name}: ", 1)[-1] if "Original Traceback" in str(error) else str(error)


def _refuse(message: str) -> NoReturn:
    _close_progress_bars()
    sys.stderr.write(f"error: {message.strip()}\n")
    sys.exit(2)


def _close_progress_bars() -> None:
    """End the lines of those that an error left open."""
    tqdm = sys.modules.get("tqdm")
    for bar in list(tqdm.tqdm._instances) if tqdm else ():
        bar.close()


def _overview() -> str:
    verbs = "".join(f"  {verb:<10} {help_}\n" for verb, help_, _ in VERBS)
    return (
        "usage: lightning_vos VERB [options]\n\nFive video segmentation papers side by side.\n\n"
        f"{verbs}\nlightning_vos VERB --help lists the options of a verb; --version says which version this is.\n"
    )


def _wrong_verb(word: str) -> str:
    import difflib

    verbs = [verb for verb, _, _ in VERBS]
    near = difflib.get_close_matches(word, verbs, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"the verbs are {', '.join(verbs)}"
    return f"{word!r} is no verb of lightning_vos\n  {hint}"


def _check_datamodules() -> None:
    """Refuses a foreign package that stands before ours on the import path."""
    from importlib.util import find_spec
    from pathlib import Path

    from lightning_vos.errors import ConfigError

    ours = Path(__file__).resolve().parents[1] / "datamodules"
    spec = find_spec("datamodules")
    found = Path((spec.submodule_search_locations or [spec.origin or ""])[0]).resolve() if spec else None
    if found != ours:
        raise ConfigError(
            f"module 'datamodules' found at {found} is not ours\n"
            f"  expected: {ours}\n"
            "  rename yours, or run from another folder by the command `lightning_vos`"
        )
