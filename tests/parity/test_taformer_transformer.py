"""SeqFormer's transformer against what the published implementation computes; sizes and counts come from the cases.

Tolerances: 1e-10 for the attention in double precision, 1e-4 for tokens and queries, whose values go to 5 (seen:
5e-6), 1e-5 for what lies in [0, 1].
"""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lightning_vos.models.taformer.decoder import DecoderSettings
from lightning_vos.models.taformer.deformable_attention import sample
from lightning_vos.models.taformer.encoder import EncoderSettings
from lightning_vos.models.taformer.positions import spatial_position
from lightning_vos.models.taformer.transformer import Transformer, valid_ratio
from lightning_vos.published import seqformer
from parity import reference

TOKENS = {"rtol": 0.0, "atol": 1e-4}
SHARES = {"rtol": 0.0, "atol": 1e-5}
_STORED_QUERIES = 30  # every so many of the box queries are stored
_STORED_LAYERS = (0, 1, -1)  # of the box queries


def arrays(case):
    return {k: torch.from_numpy(np.array(v)) for k, v in np.load(reference.ROOT / "taformer" / f"{case}.npz").items()}


@pytest.mark.parametrize("case", reference.cases("taformer", "deformable_attention"))
def test_deformable_attention(case):
    a = arrays(case)
    shapes = [tuple(shape) for shape in a["shapes"].tolist()]
    inputs = {name: a[name].double().requires_grad_() for name in ("value", "locations", "weights")}
    output = sample(inputs["value"], shapes, inputs["locations"], inputs["weights"])
    assert_close(output, a["output"], rtol=0.0, atol=1e-10)
    (output * a["upstream"]).sum().backward()
    for name, tensor in inputs.items():
        assert_close(tensor.grad, a[f"grad_{name}"], rtol=0.0, atol=1e-9)
    with torch.no_grad():
        assert_close(sample(a["value"], shapes, a["locations"], a["weights"]), a["output"].float(), **SHARES)


@pytest.mark.parametrize("case", reference.cases("taformer", "transformer"))
@torch.no_grad()
def test_transformer(case):
    a = arrays(case)
    levels = a["valid_ratios"].shape[1]
    maps = [a[f"src{level}"].float() for level in range(levels)]
    padding = [a[f"mask{level}"] for level in range(levels)]
    for level, mask in enumerate(padding):
        found = spatial_position(mask, maps[level].shape[2])
        assert_close(found[~mask], a[f"pos{level}"].permute(0, 2, 3, 1)[~mask], **SHARES)
        assert_close(valid_ratio(mask), a["valid_ratios"][:, level], **SHARES)
    state = {k: torch.from_numpy(v) for k, v in reference.weights("taformer", case).items()}
    ours = {
        k.removeprefix("transformer."): v for k, v in seqformer.to_ours(state).items() if k.startswith("transformer.")
    }
    settings = {"encoder": EncoderSettings(st_encoder=False), "decoder": DecoderSettings(temporal_decoder=False)}
    net = Transformer(queries=a["init_reference"].shape[1], **settings).eval()
    net.load_state_dict(ours)
    first = {}
    net.encoder.layers[0].register_forward_hook(lambda _, inputs, output: first.update(enumerate(output)))
    output = net(maps, padding)

    assert_close(first[1], a["encoder_layer0"], **TOKENS)
    memory = torch.cat([level.flatten(3).transpose(2, 3) for level in output.memory], dim=2)
    assert_close(memory[:, [0, 2, -1]], a["memory"], **TOKENS)
    assert_close(output.references[0], a["init_reference"][:, None].expand_as(output.references[0]), **SHARES)
    assert_close(output.boxes, a["inter_references"], **SHARES)
    assert_close(output.references[1:], a["inter_references"][:-1, ..., :2], **SHARES)
    assert_close(output.instances[:, :, a["query_index"]], a["hs"], **TOKENS)
    found = output.box_queries[list(_STORED_LAYERS)][:, :, :, ::_STORED_QUERIES]
    assert_close(found, a["hs_box"], **TOKENS)
