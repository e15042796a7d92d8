"""Channels last: weights lie so from the beginning of a run, and what is computed stays what it was."""

from copy import deepcopy

import lightning.pytorch as L
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader

from lightning_vos.callbacks.memory_format import ChannelsLast


class Filter(L.LightningModule):
    """Two convolutions, whose outputs are kept."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3))

    def test_step(self, batch, batch_idx):
        self.found = self.layers(batch)


def test_a_run_computes_the_same_with_channels_last():
    torch.manual_seed(0)
    image = torch.randn(1, 3, 8, 9)
    module = Filter()
    expected = deepcopy(module.layers)(image)
    L.Trainer(accelerator="cpu", callbacks=[ChannelsLast()], logger=False, enable_progress_bar=False).test(
        module, DataLoader(image), verbose=False
    )
    assert module.layers[1].weight.is_contiguous(memory_format=torch.channels_last)
    assert not module.layers[1].weight.is_contiguous()
    assert module.found.is_contiguous(memory_format=torch.channels_last)
    assert_close(module.found, expected)
