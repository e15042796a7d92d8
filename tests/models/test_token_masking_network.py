"""The network of token masking: any images, any number of classes, masks, maps, start weights, and heads removed."""

from dataclasses import replace

import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed
from torch.testing import assert_close

from lightning_vos import backbones
from lightning_vos.errors import CheckpointError, ConfigError
from lightning_vos.models.token_masking.gates import GateSettings
from lightning_vos.models.token_masking.network import TokenMaskingNetwork
from lightning_vos.models.token_masking.vit import ViTSettings

SMALL = {"width": 24, "depth": 3, "heads": 4, "patch": 8, "grid": 4}


def network(classes=5, seed=0, vit=None, **settings):
    """Random weights that say something, the same for one seed; eval mode."""
    torch.manual_seed(seed)
    net = TokenMaskingNetwork(classes, ViTSettings(**SMALL | (vit or {})), **settings)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "norm" not in name and "gates" not in name:
                parameter.copy_(
                    torch.randn_like(parameter) * (0.1 if parameter.dim() < 2 else parameter[0].numel() ** -0.5)
                )
    return net.eval()


def images(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def with_gates(net, closed, seed=1):
    """Gates of any height, and closed ones: (layer, head)."""
    with torch.no_grad():
        net.gates.log_a.copy_(
            torch.randn(net.gates.log_a.shape, generator=torch.Generator().manual_seed(seed)).abs() + 0.1
        )
        for layer, head in closed:
            net.gates.log_a[layer, head] = -4.0
    return net


@pytest.mark.parametrize("size", [(8, 8), (8, 40), (33, 47), (64, 24), (32, 32)])
@pytest.mark.parametrize("interpolation", ["size", "published"])
@torch.no_grad()
def test_images_of_any_size(size, interpolation):
    net = network(vit={"interpolation": interpolation})
    seen = images(2, 3, *size)
    found = net.maps(seen, layers=2, affinity=True)
    height, width = size[0] // 8, size[1] // 8
    assert found.logits.shape == (2, 5)
    assert found.maps.shape == (2, 5, height, width)
    assert found.affinity.shape == (2, height * width, height * width)
    assert_close(found.logits, net(seen).logits)
    # what is beyond a multiple of a patch is not looked at, but for how the published code resizes positions
    if interpolation == "size":
        assert_close(net(seen[:, :, : 8 * height, : 8 * width]).logits, found.logits)


@pytest.mark.parametrize("bands", [1, 3, 13, 15])
@torch.no_grad()
def test_images_of_any_bands(bands):
    net = network(vit={"bands": bands})
    seen = images(1, bands, 32, 32)
    first = net(seen).logits
    for band in range(bands):
        other = seen.clone()
        other[:, band] += 1
        assert not torch.equal(net(other).logits, first)
    with pytest.raises(ConfigError, match=f"have {bands + 1} bands, the network takes {bands}"):
        net(images(1, bands + 1, 32, 32))


@pytest.mark.parametrize("classes", [1, 20, 80, 151])
@pytest.mark.parametrize("classifier", ["concat", "shared"])
def test_any_number_of_classes(classes, classifier):
    net = network(classes, classifier=classifier).train()
    predictions = net(images(2, 3, 16, 16), torch.zeros(2, classes, dtype=torch.bool))
    assert predictions.logits.shape == (2, classes)
    assert predictions.tokens.shape == (2, classes, 24)
    numbers = sum(parameter.numel() for parameter in net.classifier.parameters())
    assert numbers == (classes * classes * 24 + classes if classifier == "concat" else 25)
    assert net.eval().maps(images(2, 3, 16, 16)).maps.shape == (2, classes, 2, 2)


def test_sizes_that_are_none_are_refused():
    with pytest.raises(ConfigError, match=r"7 x 40 pixels .* smaller than a patch of 8"):
        network()(images(1, 3, 7, 40))
    with pytest.raises(ValueError, match="classes is 0"):
        network(0)
    for settings, words in (
        ({"heads": 5}, "heads is 5, expected a divisor of the width 24"),
        ({"heads": (4, 4)}, r"heads is \[4, 4\] with head_width=None; expected a number for each of the 3 layers"),
        ({"heads": (4, 4, -1), "head_width": 6}, "expected a number for each"),
        ({"grid": 0}, "expected all above 0"),
        ({"interpolation": "nearest"}, "expected size or published"),
    ):
        with pytest.raises(ValueError, match=words):
            ViTSettings(**SMALL | settings)
    with pytest.raises(ConfigError, match=r"--model\.network\.gates=null"):
        network(vit={"heads": (1, 2, 3), "head_width": 6})


def test_a_masked_token_is_nothing_and_learns_nothing():
    net, seen = network(gates=None).train(), images(2, 3, 24, 24)
    masked = torch.tensor([[True, False, False, True, False], [False, False, False, True, False]])
    predictions = net(seen, masked)
    assert (predictions.tokens[masked] == 0).all()
    assert (predictions.tokens[~masked] != 0).any(dim=1).all()
    assert_close(predictions.tokens[~masked], net(seen).tokens[~masked])
    predictions.tokens.retain_grad()
    tokens = net.vit(seen).class_tokens.detach().requires_grad_()
    scores = net._classify(tokens.masked_fill(masked[..., None], 0))
    assert_close(scores, predictions.logits)
    scores.square().sum().backward()
    assert (tokens.grad[masked] == 0).all()
    assert (tokens.grad[~masked] != 0).any(dim=1).all()
    # class 3 is masked in all images, so its columns of the classifier learn nothing
    columns = net.classifier.weight.grad.unflatten(1, (5, 24))
    assert (columns[:, 3] == 0).all()
    assert (columns[:, 0] != 0).any()


def test_labels_do_not_enter_an_evaluation():
    net, masked = network(), torch.zeros(1, 5, dtype=torch.bool)
    with pytest.raises(ValueError, match="must not enter an evaluation"):
        net(images(1, 3, 16, 16), masked)
    net.train()(images(1, 3, 16, 16), masked)


def test_logits_depend_on_the_tokens_that_their_classifier_sees():
    for classifier, others in (("concat", True), ("shared", False)):
        net, masked = network(classifier=classifier, gates=None).train(), torch.zeros(1, 5, dtype=torch.bool)
        before = net(images(1, 3, 16, 16), masked).logits
        masked[0, 2] = True
        after = net(images(1, 3, 16, 16), masked).logits
        assert ((before != after)[0] == torch.tensor([others, others, True, others, others])).all()
        if classifier == "shared":
            assert_close(after[0, 2], net.classifier.bias[0])


@torch.no_grad()
def test_the_register_counts_and_may_be_left_out():
    net, without = network(), network(register=False)
    assert net.vit.positions.shape[1] == without.vit.positions.shape[1] + 1
    before = net(images(1, 3, 16, 16)).logits
    net.vit.register += 1
    assert not torch.equal(net(images(1, 3, 16, 16)).logits, before)
    assert without.maps(images(1, 3, 24, 16)).maps.shape == (1, 5, 3, 2)


@torch.no_grad()
def test_gates_of_training_are_drawn_or_given():
    net, seen = network(), images(1, 3, 16, 16)
    with_gates(net, [])
    assert torch.equal(net(seen).logits, net(seen).logits)
    net.train()
    assert not torch.equal(net(seen).logits, net(seen).logits)
    noise = torch.full((3, 4), 0.4)
    assert torch.equal(net(seen, gate_noise=noise).logits, net(seen, gate_noise=noise).logits)


@torch.no_grad()
def test_maps_are_attention_of_class_tokens_to_patches():
    """Summed over layers; brute force from queries and keys."""
    net, seen = with_gates(network(), [(2, 1), (1, 0), (1, 3)]), images(2, 3, 24, 16)
    inputs = []
    for block in net.vit.blocks:
        block.attention.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    net(seen)
    by_layer = []
    for block, tokens in zip(net.vit.blocks, list(inputs), strict=True):
        query, key, _ = block.attention.qkv(tokens).view(2, 12, 3, 4, 6).permute(2, 0, 3, 1, 4)
        by_layer.append((query @ key.mT / 6**0.5).softmax(dim=3))
    assert all(maps.sum(dim=3).allclose(torch.ones(())) for maps in by_layer)
    gates = net.gates.values()
    is_open = gates > 0

    def expected(layer, heads, rows):
        weights = {"all": torch.ones(4) / 4, "gated": gates[layer] / 4, "open": is_open[layer] / is_open[layer].sum()}
        return torch.einsum("bmrt,m->brt", by_layer[layer], weights[heads])[:, rows, 5:11]

    for layers, numbers in ((1, [2]), (3, [0, 1, 2]), ([1], [1]), ((0, 2), [0, 2])):
        for heads in ("open", "gated", "all"):
            found = net.maps(seen, layers, heads, affinity=True)
            maps = sum(expected(layer, heads, slice(0, 5)) for layer in numbers)
            assert_close(found.maps.flatten(2), maps)
            assert_close(found.affinity, sum(expected(layer, heads, slice(5, 11)) for layer in numbers))


def test_only_the_layers_asked_for_are_looked_at(monkeypatch):
    net, looked = network(), []
    for number, block in enumerate(net.vit.blocks):
        block.attention.register_forward_hook(
            lambda _, inputs, output, number=number: looked.append(number) if output[1] is not None else None
        )
    net(images(1, 3, 16, 16))
    assert looked == []
    net.maps(images(1, 3, 16, 16), layers=2)
    assert looked == [1, 2]


@pytest.mark.parametrize("layers", [0, 4, [], [3], [-1, 0]])
def test_layers_that_are_not_there_are_refused(layers):
    with pytest.raises(ValueError, match="expected 1 to 3 as a number, or numbers from 0 to 2"):
        network().maps(images(1, 3, 16, 16), layers)


@torch.no_grad()
def test_another_layer_stands_in_where_all_heads_are_closed():
    seen, last = images(1, 3, 16, 16), [(2, head) for head in range(4)]
    for net in (with_gates(network(), last), with_gates(network(), last).pruned()):
        assert_close(net.maps(seen).maps, net.maps(seen, layers=[1]).maps)
        assert_close(net.maps(seen, layers=2).maps, net.maps(seen, layers=[1]).maps)
        assert net.open_heads() == [4, 4, 0]
    every = [(layer, head) for layer in range(3) for head in range(4)]
    for net in (with_gates(network(), every), with_gates(network(), every).pruned()):
        found = net.maps(seen, affinity=True)
        assert (found.maps == 0).all()
        assert (found.affinity == 0).all()
        assert found.logits.isfinite().all()


def test_maps_of_training_teach_the_attention_alone():
    net = network(patch_head=True).train()
    predictions = net(images(2, 3, 16, 24), with_maps=True)
    assert predictions.patch_logits.shape == (2, 5)
    predictions.maps.square().sum().backward()
    assert net.patch_head.weight.grad is None
    assert net.vit.blocks[2].attention.qkv.weight.grad.abs().sum() > 0
    assert net.vit.blocks[2].mlp[0].weight.grad is None
    assert net(images(2, 3, 16, 24)).maps is None
    with torch.no_grad():
        net.eval()
        fused, plain = (net.maps(images(2, 3, 16, 24), 3, "all", fused=fused).maps for fused in (True, False))
        assert_close(net(images(2, 3, 16, 24), with_maps=True).maps, fused)
        assert (fused != plain).any()
    with pytest.raises(ConfigError, match="need a patch head"):
        network().maps(images(1, 3, 16, 16), fused=True)


@pytest.mark.parametrize("is_hard", [True, False])
@pytest.mark.parametrize("qkv_bias", [True, False])
@torch.no_grad()
def test_a_pruned_network_says_the_same(is_hard, qkv_bias):
    closed = [(0, 1), (0, 2), (2, 3), *((1, head) for head in range(4))]
    settings = {"gates": GateSettings(hard=is_hard), "vit": {"qkv_bias": qkv_bias}, "patch_head": True}
    net = with_gates(network(**settings), closed).double()  # so that rounding hides nothing
    gates, smaller, seen = net.gates.values(), net.pruned(), images(2, 3, 33, 24).double()
    assert is_hard == bool(((gates == 0) | (gates == 1)).all())
    assert smaller.open_heads() == net.open_heads() == [2, 0, 3]
    assert not smaller.training
    assert (smaller(seen).logits - net(seen).logits).abs().max() < 1e-12
    assert (smaller(seen).patch_logits - net(seen).patch_logits).abs().max() < 1e-12
    for layers in (1, 3):
        found, expected = (one.maps(seen, layers, affinity=True, fused=True) for one in (smaller, net))
        assert_close(found, expected, rtol=0.0, atol=1e-12)
    removed = 7 * 6 * (4 * 24 + 3 * qkv_bias) + net.gates.log_a.numel()
    assert sum(p.numel() for p in net.parameters()) - sum(p.numel() for p in smaller.parameters()) == removed
    for heads in ("all", "gated"):
        with pytest.raises(ConfigError, match="have been removed"):
            smaller.maps(seen, heads=heads)
    with pytest.raises(ConfigError, match="no gates"):
        smaller.pruned()


def test_a_pruned_network_can_learn_on():
    net = with_gates(network(), [(1, head) for head in range(4)]).pruned().train()
    net(images(1, 3, 16, 16), torch.zeros(1, 5, dtype=torch.bool), with_maps=True).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


@torch.no_grad()
def test_half_precision_is_near():
    net, seen = with_gates(network(), [(0, 1)]), images(2, 3, 32, 24)
    exact = net.maps(seen, affinity=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = net.maps(seen, affinity=True)
    assert_close(found.logits.float(), exact.logits, rtol=0.05, atol=0.1)
    assert_close(found.maps.float(), exact.maps, rtol=0.1, atol=0.01)


NAME = "vit_tiny_patch16_224"
TIMM = {"width": 192, "depth": 12, "heads": 3, "patch": 16}


@pytest.fixture(scope="module")
def plain():
    """A plain transformer of timm with random weights, an image, and its class token and patches."""
    torch.manual_seed(0)
    model = timm.create_model(NAME, pretrained=False, num_classes=0, global_pool="").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
        image = images(1, 3, 224, 224)
        return model.state_dict(), image, model(image)


@pytest.fixture
def pretrained(plain, monkeypatch):
    """timm's weights are those of `plain`; a dictionary to spoil."""
    state = dict(plain[0])
    monkeypatch.setattr(backbones, "_pretrained_state", lambda name, option: state if name == NAME else None)
    return state


@torch.no_grad()
def test_start_weights_are_those_of_a_plain_transformer(plain, pretrained):
    """With one class and no register the network is the plain one; its noise is taken off."""
    state, image, expected = plain
    net = TokenMaskingNetwork(1, ViTSettings(**TIMM), NAME, register=False, gates=None).eval()
    before = net.classifier.weight.clone()
    net.load_start_weights()
    noise = net.vit.class_tokens - state["cls_token"]
    assert 0 < float(noise.abs().max()) < 0.1
    net.vit.class_tokens -= noise
    found = net.vit(image)
    assert_close(found.class_tokens[:, 0], expected[:, 0], rtol=1e-4, atol=1e-4)
    assert_close(found.patches.flatten(2).mT, expected[:, 1:], rtol=1e-4, atol=1e-4)
    assert torch.equal(net.classifier.weight, before)


@torch.no_grad()
def test_start_weights_are_repeated_and_resized(pretrained):
    net = TokenMaskingNetwork(4, ViTSettings(**TIMM, grid=20, bands=13), NAME)
    register, register_position = net.vit.register.clone(), net.vit.positions[:, -1].clone()
    net.load_start_weights()
    tokens = net.vit.class_tokens[0]
    assert float((tokens - pretrained["cls_token"][0]).std()) == pytest.approx(0.02, rel=0.2)
    assert len({float(token[0]) for token in tokens}) == 4
    table = pretrained["pos_embed"]
    assert torch.equal(net.vit.positions[:, :4], table[:, :1].expand(-1, 4, -1))
    assert_close(net.vit.positions[:, 4:-1], resample_abs_pos_embed(table[:, 1:], [20, 20], num_prefix_tokens=0))
    assert torch.equal(net.vit.positions[:, -1], register_position)
    assert torch.equal(net.vit.register, register)
    kernel = pretrained["patch_embed.proj.weight"]
    assert_close(net.vit.patch_embedding.weight[:, 3:6] * 13 / 3, kernel)
    assert_close(net.vit.blocks[7].attention.qkv.bias, pretrained["blocks.7.attn.qkv.bias"])
    assert net(images(1, 13, 32, 32)).logits.isfinite().all()


def spoilt(state, how):
    """One fault, and what a message must say of it."""
    if how == "missing":
        del state["blocks.3.mlp.fc1.bias"]
        return r"1 entries missing \['blocks\.3\.mlp\.0\.bias'\]"
    if how == "shape":
        state["blocks.2.attn.proj.bias"] = torch.zeros(5)
        return r"1 of another shape \['blocks\.2\.attention\.proj\.bias'\]"
    if how == "left over":
        state["blocks.1.ls1.gamma"] = torch.zeros(192)
        return r"1 left over \['blocks\.1\.ls1\.gamma'\]"
    state["pos_embed"] = state["pos_embed"][:, 1:]
    return r"positions \(1, 196, 192\)"


@pytest.mark.parametrize("how", ["missing", "shape", "left over", "positions"])
def test_start_weights_that_do_not_fit_are_refused(pretrained, how):
    net = TokenMaskingNetwork(4, ViTSettings(**TIMM), NAME)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(CheckpointError, match=spoilt(pretrained, how)) as error:
        net.load_start_weights()
    assert NAME in str(error.value)
    assert len(str(error.value).splitlines()) <= 8
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_start_weights_for_queries_without_bias_are_refused(pretrained):
    net = TokenMaskingNetwork(4, ViTSettings(**TIMM, qkv_bias=False), NAME)
    with pytest.raises(CheckpointError, match=r"12 left over \['blocks\.0\.attention\.qkv\.bias'"):
        net.load_start_weights()


def test_start_weights_of_a_file_or_none(tmp_path, plain):
    net = TokenMaskingNetwork(4, ViTSettings(**TIMM))
    before = net.vit.positions.clone()
    net.load_start_weights()
    assert torch.equal(net.vit.positions, before)
    torch.save({"model": plain[0]}, tmp_path / "deit.pth")
    net.start_weights = str(tmp_path / "deit.pth")
    net.load_start_weights()
    assert torch.equal(net.vit.positions[:, 3], plain[0]["pos_embed"][:, 0])
    net.start_weights = str(tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="does not exist"):
        net.load_start_weights()


def test_start_weights_that_cannot_be_had_are_refused_by_their_option(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    net = TokenMaskingNetwork(4, ViTSettings(**TIMM), "deit_base_patch16_224.fb_in1k")
    with pytest.raises(CheckpointError, match=r"cannot be had.* by --model\.network\.start_weights, or"):
        net.load_start_weights()


def test_the_default_network_is_the_paper_s():
    with torch.device("meta"):
        sizes = {
            classes: sum(p.numel() for p in TokenMaskingNetwork(classes).parameters()) / 1e6
            for classes in (20, 80, 151)
        }
        official = TokenMaskingNetwork(
            20,
            ViTSettings(heads=16, qkv_bias=False, norm_eps=1e-5, final_norm=False, interpolation="published"),
            gates=GateSettings(hard=True, start=None),
            patch_head=True,
        )
    # the published numbers hold a norm and a classifier that are never used
    unused = 2 * 768 + official.classifier.weight.numel() + official.classifier.bias.numel()
    assert (sum(p.numel() for p in official.parameters()) + unused) / 1e6 == pytest.approx(86.55, abs=0.01)
    assert sizes[80] - sizes[20] == pytest.approx((768 * (80**2 - 20**2) + 60 * (1 + 2 * 768)) / 1e6)
    assert replace(ViTSettings(), heads=16).channels == 48
