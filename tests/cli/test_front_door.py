from __future__ import annotations

import subprocess
import sys
import time

import pytest
from tqdm import tqdm

from lightning_vos import __version__, cli
from lightning_vos.errors import ConfigError


def test_help_is_quick_and_never_imports_torch():
    code = (
        "import sys; sys.argv = ['lightning_vos', '--help']; from lightning_vos.cli import main; main(); "
        "sys.exit('torch' in sys.modules or 'yaml' in sys.modules)"
    )
    start = time.process_time(), time.perf_counter()
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert finished.returncode == 0, finished.stderr
    assert time.perf_counter() - start[1] < 1
    assert all(verb in finished.stdout for verb, _, _ in cli.VERBS)


@pytest.mark.parametrize("words", [(), ("-h",), ("--help",)])
def test_no_words_list_the_verbs(command, words):
    finished = command(*words)
    assert finished.status == 0
    assert "segment" in finished.out


def test_version(command):
    assert command("--version").out == f"lightning_vos {__version__}\n"


def test_a_wrong_verb_is_put_right(command):
    finished = command("fti")
    assert finished.status == 2
    assert finished.err == "error: 'fti' is no verb of lightning_vos\n  did you mean 'fit'?\n"


def test_a_foreign_datamodules_is_named(command, tmp_path, monkeypatch):
    (tmp_path / "datamodules").mkdir()
    (tmp_path / "datamodules" / "__init__.py").touch()
    for name in [name for name in sys.modules if name.partition(".")[0] == "datamodules"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    finished = command("fit")
    assert finished.status == 2
    assert f"found at {tmp_path / 'datamodules'} is not ours" in finished.err


@pytest.mark.parametrize("how", ["cause", "context", "worker"])
def test_a_user_error_is_found_wherever_it_hides(command, monkeypatch, how):
    class Command:
        @staticmethod
        def main(args: list[str]) -> None:
            if how == "worker":
                raise ConfigError(
                    "Caught ConfigError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
                    "  File ...\nlightning_vos.errors.ConfigError: too few frames\n  found: 1"
                )
            try:
                raise ConfigError("too few frames\n  found: 1")
            except ConfigError as error:
                raise RuntimeError("wrapped") from (error if how == "cause" else None)

    monkeypatch.setitem(sys.modules, "lightning_vos.commands.convert", Command)
    monkeypatch.setattr(cli, "import_module", lambda name: Command)
    finished = command("convert", "a")
    assert (finished.status, finished.err) == (2, "error: too few frames\n  found: 1\n")


def test_an_error_begins_a_line_below_an_open_bar(command, monkeypatch):
    def fail(name: str) -> None:
        raise ConfigError("too few frames")

    monkeypatch.setattr(cli, "import_module", fail)
    bar = tqdm(total=3, desc="Predicting", file=sys.stderr)
    assert command("convert", "a").err.endswith("\nerror: too few frames\n")
    assert bar.disable
    assert command("convert", "a").err == "error: too few frames\n"


def test_other_errors_keep_their_traceback(command, monkeypatch):
    def fail(name: str) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "import_module", fail)
    with pytest.raises(ZeroDivisionError):
        command("convert", "a")


def test_interruption_is_one_line(command, monkeypatch):
    def interrupt(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "import_module", interrupt)
    finished = command("convert", "a")
    assert (finished.status, finished.err.strip()) == (130, "interrupted")


def test_running_out_of_memory_names_what_helps(command, monkeypatch):
    def fail(name: str) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.\nmore of it")

    monkeypatch.setattr(cli, "import_module", fail)
    finished = command("fit")
    assert finished.status == 2
    assert "Out of memory: DefaultCPUAllocator" in finished.err
    assert "--data.batch_size" in finished.err
    assert "more of it" not in finished.err
