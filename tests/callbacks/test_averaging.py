"""The averaged weights: how they move, that checkpoints hold them, and that a resumed run goes on with them."""

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, IterableDataset

from lightning_vos.callbacks.averaging import WarmEMA

STEPS = 30


class Line(L.LightningModule):
    """A line that follows noise, with a statistic that is no parameter."""

    def __init__(self):
        super().__init__()
        self.line = nn.Linear(3, 2)
        self.norm = nn.BatchNorm1d(2)

    def training_step(self, batch, batch_idx):
        return (self.norm(self.line(batch)) - batch[:, :2]).square().mean()

    def validation_step(self, batch, batch_idx):
        self.validated = self.line.weight.detach().clone()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)


class Watch(Callback):
    """Keeps the weights after every step."""

    def __init__(self):
        self.weights = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.weights.append(pl_module.line.weight.detach().clone())


class From(IterableDataset):
    """Batches of unknown number, as the project's loaders give them."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


def fit(folder, until=STEPS, resumed=None, window=0.1):
    """A run that stops at `until`; its module, its weights after each step, and its checkpoint."""
    torch.manual_seed(0)
    module, watch, averaging = Line(), Watch(), WarmEMA(window)
    batches = torch.randn(STEPS, 4, 3, generator=torch.Generator().manual_seed(1))
    data = DataLoader(From(batches[0 if resumed is None else resumed[1] :]), batch_size=None)
    trainer = L.Trainer(
        max_steps=STEPS,
        accelerator="cpu",
        callbacks=[averaging, watch, Stop(until)],
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    path = folder / f"{until}.ckpt"
    held_out = DataLoader(batches[:1], batch_size=None)
    trainer.fit(module, data, held_out, ckpt_path=resumed and resumed[0], weights_only=True)
    return module, watch.weights, path


class Stop(Callback):
    """Saves after a number of steps, and ends."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(f"{trainer.default_root_dir}/{self.step}.ckpt")
            trainer.should_stop = True


def averaged(weights, window=0.1):
    """The recipe, plainly."""
    average = weights[0]
    for n, current in enumerate(weights[1:], start=1):
        decay = min(1 - 1 / (window * STEPS), (1 + n) / (10 + n))
        average = decay * average + (1 - decay) * current
    return average


@pytest.mark.parametrize("window", [0.1, 0.5])
def test_the_average_follows_the_recipe(tmp_path, window):
    module, weights, path = fit(tmp_path, window=window)
    assert len(weights) == STEPS
    expected = averaged(weights, window)
    assert (expected - weights[-1]).abs().max() > 1e-3
    content = torch.load(path, weights_only=True)
    assert_close(content["state_dict"]["line.weight"], expected)
    assert_close(content["current_model_state"]["line.weight"], weights[-1])
    assert content["state_dict"]["norm.num_batches_tracked"].dtype == torch.int64
    assert_close(module.line.weight, expected)  # what is tested after a fit


def test_validation_sees_the_average_and_training_goes_on_without_it(tmp_path):
    module, weights, _ = fit(tmp_path)
    assert_close(module.validated, averaged(weights))
    assert len({float(w.sum()) for w in weights}) == STEPS


def test_a_resumed_run_goes_on_with_the_average(tmp_path):
    _, weights, path = fit(tmp_path)
    whole = torch.load(path, weights_only=True)
    _, first, half = fit(tmp_path, until=12)
    _, second, path = fit(tmp_path, resumed=(half, 12))
    assert_close(torch.stack(first + second), torch.stack(weights))
    resumed = torch.load(path, weights_only=True)
    for name, value in whole["state_dict"].items():
        assert_close(resumed["state_dict"][name], value)
    assert resumed["averaging_state"]["n_averaged"] == STEPS


@pytest.mark.parametrize("window", [0.0, 1.5])
def test_a_window_is_a_fraction(window):
    with pytest.raises(ValueError, match="window is"):
        WarmEMA(window)
