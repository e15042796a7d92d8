"""Every row of the tables of ablations is a setting of one network, which learns; and it learns from single images."""

from functools import partial

import pytest
import tiny
import torch

from lightning_vos.errors import CheckpointError
from lightning_vos.models.taformer.criterion import Criterion
from lightning_vos.models.taformer.decoder import DecoderSettings
from lightning_vos.models.taformer.encoder import EncoderSettings
from lightning_vos.models.taformer.network import TAFormerNetwork
from lightning_vos.published import load_weights, seqformer
from lightning_vos.structures import Instances

SEQFORMER = {"encoder.st_encoder": False, "decoder.temporal_decoder": False, "contrastive": "none"}
ST_ENCODER = {"decoder.temporal_decoder": False, "contrastive": "none"}
ROWS = {
    "3, baseline": SEQFORMER,
    "3, + ST-Enc": ST_ENCODER,
    "3, + TA-Dec": {"contrastive": "none"},
    "3, + contrastive": {},
    "4, addition": ST_ENCODER | {"encoder.fusion": "add"},
    "4, concatenation": ST_ENCODER | {"encoder.fusion": "concat"},
    "4, DAF": ST_ENCODER | {"encoder.fusion": "dynamic"},
    "5, 1 and 0": SEQFORMER | {"encoder.spatial_levels": 1},
    "5, 4 and 0": SEQFORMER | {"encoder.spatial_levels": 4},
    "5, 1 and 1": ST_ENCODER | {"encoder.spatial_levels": 1, "encoder.temporal_levels": 1},
    "5, 4 and 4": ST_ENCODER | {"encoder.spatial_levels": 4, "encoder.temporal_levels": 4},
    "6, none": {"contrastive": "none"},
    "6, last layer": {"contrastive": "last_layer"},
    "6, all layers": {"contrastive": "all_layers"},
    **{f"7, {points} points": {"encoder.k_inter": points} for points in (1, 2, 3, 4)},
}
"""What `model.network` says in each row."""

READINGS = {
    "taformer": {},
    "seqformer": SEQFORMER,
    "what else has weights": {
        "encoder.fusion": "concat",
        "encoder.share_value_proj": False,
        "decoder.temporal_weights": "per_layer",
    },
    "what has no weights": {"encoder.fusion": "add", "decoder.temporal_weights": "tied", "contrastive": "last_layer"},
}


def parts(settings):
    """What the network is given; the published default where nothing is said."""
    of = {
        part: {key.partition(".")[2]: value for key, value in settings.items() if key.startswith(f"{part}.")}
        for part in ("encoder", "decoder")
    }
    given = {"encoder": EncoderSettings(**of["encoder"]), "decoder": DecoderSettings(**of["decoder"])}
    return given | {"contrastive": settings.get("contrastive", "all_layers")}


def network(settings):
    """Random weights, all of them drawn: heads that start at zero would hold gradients back."""
    torch.manual_seed(0)
    small = {"classes": 4, "queries": 6, "channels": 64, "layers": 2, "feed": 16, "dropout": 0.0}
    net = TAFormerNetwork(tiny.backbone(strides=(8, 16, 32), frozen_norms=True), **small, **parts(settings))
    for name, parameter in net.named_parameters():
        if parameter.dim() > 1 and not name.startswith("backbone"):
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return net


def loss(net, length, count):
    """Of one clip of noise with squares in it."""
    torch.manual_seed(1)
    size = (40, 48)
    masks = torch.zeros(count, length, *size, dtype=torch.bool)
    boxes = torch.empty(count, length, 4)
    for number in range(count):
        masks[number, :, 8 : 8 + 16, 16 * number : 16 * number + 16] = True
        boxes[number] = torch.tensor([(16 * number + 8) / 48, 16 / 40, 16 / 48, 16 / 40])
    valid = torch.ones(count, length, dtype=torch.bool)
    predictions = net(torch.rand(1, length, 3, *size), torch.tensor([size]))
    instances = (Instances(torch.arange(count), boxes, masks, valid),)
    return Criterion()(predictions, partial(net.masks, predictions), instances, net.first_class).total


@pytest.mark.parametrize("row", ROWS)
def test_a_row_of_the_tables_learns(row):
    net = network(ROWS[row])
    before = loss(net, length=3, count=2)
    before.backward()
    learning = {name: one for name, one in net.named_parameters() if one.requires_grad}
    assert [name for name, one in learning.items() if one.grad is None or not one.grad.isfinite().all()] == []
    # Biases before a softmax have none, nor has one whose ReLU is shut.
    assert [name for name, one in learning.items() if one.dim() > 1 and not one.grad.any()] == []
    torch.nn.utils.clip_grad_norm_(learning.values(), 1e-3)
    torch.optim.SGD(learning.values(), lr=1.0).step()
    with torch.no_grad():
        assert loss(net, length=3, count=2) < before


@pytest.mark.parametrize(
    "same",
    [
        ("3, baseline", "5, 4 and 0"),
        ("3, + ST-Enc", "4, DAF", "5, 4 and 4"),
        ("3, + TA-Dec", "6, none"),
        ("3, + contrastive", "6, all layers", "7, 4 points"),
    ],
)
def test_rows_of_one_result_are_one_model(same):
    """The paper prints one AP for each of these."""
    assert all(parts(ROWS[row]) == parts(ROWS[same[0]]) for row in same)


def with_the_rest_shut(net):
    """The network with no weight on any level but stride 32, in its encoder."""
    for layer in net.transformer.encoder.layers:
        for attention in (layer.attention, layer.temporal_attention):
            slots = (attention.heads * attention.frames, attention.levels, attention.points)
            for entry, shut in ((attention.attention_weights.weight, 0.0), (attention.attention_weights.bias, -1e4)):
                entry.unflatten(0, slots)[:, [0, 1, 3]] = shut
    return net


@pytest.mark.parametrize("is_published", [False, True])
@torch.no_grad()
def test_a_network_of_one_level_takes_its_rows_from_one_of_all(tmp_path, is_published):
    one, every = network(ROWS["5, 1 and 1"]), network(ROWS["5, 4 and 4"])
    state, path = every.state_dict(), tmp_path / "weights.pth"
    torch.save(seqformer.to_published(state) if is_published else state, path)
    with pytest.raises(CheckpointError, match="16 entries of another shape"):
        load_weights(one, path)
    line = load_weights(one, path, ["transformer.encoder"])
    assert line.endswith("16 of which place points on all levels: the rows of stride 32 are taken.")
    frames, sizes = torch.rand(1, 3, 3, 40, 48), torch.tensor([[40, 48]])
    found, expected = one.eval()(frames, sizes), with_the_rest_shut(every.eval())(frames, sizes)
    torch.testing.assert_close(found.logits, expected.logits)
    torch.testing.assert_close(found.boxes, expected.boxes)


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("count", [0, 2])
def test_clips_of_one_frame_teach_everything(reading, count):
    """Images do in the first stage. A parameter without a gradient, if only of zero, stops distributed training."""
    net = network(READINGS[reading])
    loss(net, length=1, count=count).backward()
    assert [name for name, one in net.named_parameters() if one.requires_grad and one.grad is None] == []
