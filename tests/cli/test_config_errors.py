"""Each mistake of a config says what, where, what was found and what fits, in at most eight lines.

The texts that are taken apart are jsonargparse's: this is the place that notices when they change.
"""

from __future__ import annotations

import pytest

CALLBACKS = "lightning.pytorch.callbacks"


def fails(finished, *parts: str) -> None:
    assert finished.status == 2
    message = finished.err[finished.err.index("error: ") :]
    assert len(message.splitlines()) <= 8
    assert "Traceback" not in finished.err
    assert "Union" not in message
    assert "usage:" not in finished.err
    for part in parts:
        assert part in message, message


@pytest.mark.parametrize(
    ("option", "parts"),
    [
        ("--trainer.max_epoch=3", ["unknown key 'trainer.max_epoch'", "did you mean 'trainer.max_epochs'?"]),
        ("--trainer.max_ste=3", ["unknown key 'trainer.max_ste'", "did you mean 'trainer.max_steps'?"]),
        ("--ckpt_pat=x", ["unknown key 'ckpt_pat'", "did you mean 'ckpt_path'?"]),
        ("--model.scal=3", ["unknown key 'model.scal'", "takes: network, optimizer, scale", "did you mean 'scale'?"]),
        ("--model.network.widht=3", ["unknown key 'model.network.widht'", "did you mean 'width'?"]),
        (
            "--model.init_args.network.init_args.widht=3",
            ["unknown key 'model.network.widht'", "parts.Network takes: width, dropout"],
        ),
        ("--model.optimizer.lrr=3", ["unknown key 'model.optimizer.lrr'", "did you mean 'lr'?"]),
        ("--model.network.width=three", ["wrong value for 'model.network.width'", "found: three", "expected: int"]),
        ("--model.widths=three", ["wrong value for 'model.widths'", "found: three", "expected: list[int], null"]),
        ("--trainer.max_steps=a", ["wrong value for 'trainer.max_steps'", "found: a", "expected: int"]),
        ("--trainer.precision=15", ["wrong value for 'trainer.precision'", "found: 15", "16-mixed"]),
        ("--model=lightning_vos.MAVO", ["no class 'lightning_vos.MAVO'", "did you mean 'lightning_vos.MAVOS'?"]),
        ("--model=lightning_vo.MAVOS", ["no class 'lightning_vo.MAVOS'", "did you mean 'lightning_vos.MAVOS'?"]),
        ("--model=MAVO", ["no class 'MAVO'", "did you mean 'lightning_vos.MAVOS'?"]),
        ("--data=parts.TinyDat", ["no class 'parts.TinyDat'", "key: data", "did you mean 'parts.TinyData'?"]),
        ("--model.network=parts.Netwrk", ["no class 'parts.Netwrk'", "key: model.network", "'parts.Network'?"]),
        ("--model.network.width=-3", ["Network refuses its arguments: width must be at least 1, found -3"]),
        ("--trainer.accelerator=gpuu", ["Trainer refuses its arguments", "gpuu"]),
        ("--model.network.width=13", ["error: width 13 brings bad luck"]),
        (
            "--data.look.thresh=0.3",
            ["unknown key 'data.look.thresh'", "data.look takes: threshold, scales", "did you mean 'threshold'?"],
        ),
        ("--data.look.scale=[1.0]", ["unknown key 'data.look.scale'", "did you mean 'scales'?"]),
        (
            "--data.look.threshold=half",
            ["wrong value for 'data.look.threshold'", "found: half", "expected: mean, otsu or a number\n"],
        ),
        ("--data.look.scales=[]", ["Look refuses its arguments: scales is empty", "the command line, --data.look.sc"]),
        ("extra", ["'extra' is not an option"]),
    ],
)
def test_on_the_command_line(command, folder, option, parts):
    finished = command("fit", "--config", "tiny.yaml", option)
    fails(finished, *parts)
    if parts[0].startswith(("unknown", "wrong", "no class")):
        assert f"in: the command line, {option}" in finished.err


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("trainer: {max_epoch: 3}", ["unknown key 'trainer.max_epoch'", "more.yaml, line 2"]),
        ("modle: {init_args: {scale: 2}}", ["unknown key 'modle.init_args.scale'", "did you mean 'model'?"]),
        ("modle: {init_args: {}}", ["unknown key 'modle'", "more.yaml, line 2", "did you mean 'model'?"]),
        (
            "data: {init_args: {look: {thresh: 0.3}}}",
            ["unknown key 'data.look.thresh'", "more.yaml, line 2", "did you mean 'threshold'?"],
        ),
        ("model: {init_args: {network: {init_args: {widht: 2}}}}", ["unknown key 'model.network.widht'", "line 2"]),
        ("model: {init_args: {network: {init_args: {width: two}}}}", ["wrong value", "found: two", "line 2"]),
        (
            f"trainer: {{callbacks: [{{class_path: {CALLBACKS}.ModelCheckpoint, init_args: {{moniter: x}}}}]}}",
            ["unknown key 'trainer.callbacks.moniter'", "did you mean 'monitor'?"],
        ),
        (
            f"trainer: {{callbacks+: {CALLBACKS}.EarlyStoping}}",
            ["no class", f"did you mean '{CALLBACKS}.EarlyStopping'?"],
        ),
        ("trainer: [1,\nmodel: 2", ["more.yaml, line 4", "not valid YAML"]),
        ("- a list", ["must hold keys and values"]),
        ("include: more.yaml", ["`include` must be a list of file names", "found 'more.yaml'"]),
        ("include: [more.yaml]", ["more.yaml includes itself"]),
        ("include: [bse.yaml]", ["'bse.yaml' does not exist", "nearest: base.yaml"]),
        ("config: base.yaml", ["builds on others by `include: [base.yaml]`"]),
    ],
)
def test_in_a_config(command, folder, text, parts):
    (folder / "more.yaml").write_text(f"# a comment\n{text}\n")
    fails(command("fit", "--config", "tiny.yaml", "--config", "more.yaml"), *parts)


def test_a_missing_config_says_where_it_was_looked_for(command, folder):
    fails(command("fit", "--config", "configs/bas.yaml"), "'configs/bas.yaml' does not exist", str(folder), "base.yaml")


def test_no_recipe(command, folder):
    fails(command("fit"), "no data and model given", "--config configs/RECIPE.yaml")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_the_data_is_short_too(command, folder, workers):
    finished = command("fit", "-c", "tiny.yaml", "--data.broken=true", f"--data.workers={workers}")
    fails(finished)
    assert finished.err.endswith("error: frame 00003.jpg is missing\n")
