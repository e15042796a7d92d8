"""Comparisons that are files: their commands, their results, and what is wrong with a file."""

import json
from pathlib import Path

import pytest
import yaml

TINY = Path(__file__).parents[1] / "end_to_end" / "tiny.yaml"
SHIPPED = sorted((Path(__file__).parents[2] / "experiments").rglob("*.yaml"))


@pytest.fixture
def comparison(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = {
        "configs": [str(TINY)],
        "overrides": {"trainer.max_steps": 2, "trainer.val_check_interval": 2, "data.settings": "{train: 1, val: 1}"},
        "seeds": [3, 4],
        "measures": ["test/J&F", "test/identity_switches"],
        "rows": {"append": {"configs": ["memory/append.yaml"]}, "wide": {"overrides": {"model.network.window": 7}}},
    }
    path = tmp_path / "memories.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def test_commands_are_what_a_person_would_type(command, comparison):
    printed = command("experiment", "run", str(comparison), "wide", "--print")
    assert printed.status == 0, printed.err
    fit, test, *others = printed.out.splitlines()
    assert fit.startswith(f"lightning_vos fit --config {TINY} --trainer.max_steps=2 "), fit
    assert "--model.network.window=7" in fit
    assert "--seed_everything=3" in fit
    assert test == fit.replace("vos fit", "vos test") + " --ckpt_path=last"
    assert len(others) == 2
    assert not (comparison.parent / "runs").exists()


def test_a_row_is_trained_and_tested_once(command, comparison):
    content = yaml.safe_load(comparison.read_text()) | {"seeds": [3]}
    comparison.write_text(yaml.safe_dump(content, sort_keys=False))
    finished = command("experiment", "run", str(comparison), "append")
    assert finished.status == 0, finished.err
    (path,) = comparison.with_suffix("").iterdir()
    result = json.loads(path.read_text())
    assert (path.name, result["row"], result["seed"]) == ("append-seed3.json", "append", 3)
    assert 0 <= result["measures"]["test/J&F"] <= 100
    assert {"torch", "revision", "seconds"} <= result.keys()
    path.write_text(json.dumps(result | {"measures": {"test/J&F": 12.25, "test/identity_switches": 4}}))
    again = command("experiment", "run", str(comparison), "append")  # there is nothing left to do
    assert "12.2 (12.2 to 12.2)" in again.out
    assert "not run" in again.out


def test_results_of_several_seeds_are_shown_with_their_spread(command, comparison):
    folder = comparison.with_suffix("")
    folder.mkdir()
    for seed, value in ((3, 50.0), (4, 60.0)):
        measures = {"test/J&F": value, "test/identity_switches": seed}
        (folder / f"wide-seed{seed}.json").write_text(json.dumps({"measures": measures}))
    shown = command("experiment", "list", str(comparison)).out
    assert "55.0 (50.0 to 60.0)" in shown
    assert "3.5 (3.0 to 4.0)" in shown


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_rows_are_parsed_by_the_real_command_line(command, path):
    printed = command("experiment", "run", str(path), "--print")
    assert printed.status == 0, printed.err
    first_seed = printed.out.splitlines()[: 2 * len(yaml.safe_load(path.read_text())["rows"])]
    for line in first_seed[::2]:
        _, *words = line.split()
        parsed = command(*words, "--print_config")
        assert parsed.status == 0, parsed.err


def test_what_is_wrong_is_said(command, comparison):
    for words, parts in (
        (("run", "nowhere.yaml"), ["nowhere.yaml is no comparison", "No such file"]),
        (("run", str(comparison), "other"), ["no rows ['other']", "append, wide"]),
    ):
        refused = command("experiment", *words)
        assert refused.status == 2
        assert all(part in refused.err for part in parts), refused.err
        assert len(refused.err.splitlines()) <= 8
    comparison.write_text("rows: {}\n")
    assert "keys configs, overrides, seeds" in command("experiment", "list", str(comparison)).err
