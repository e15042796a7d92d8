"""The second stage of token masking: networks for any size and number of bands, the loss, how whole images are seen."""

from types import SimpleNamespace

import pytest
import timm
import torch
from torch import nn

from lightning_vos.errors import CheckpointError, ConfigError
from lightning_vos.evaluation.semantic import ClassSet
from lightning_vos.models.token_masking import segmentation_networks
from lightning_vos.models.token_masking.segmentation import SegmentationFromMasks, Views, cross_entropy, segment
from lightning_vos.models.token_masking.segmentation_networks import DeepLabV3, SegmentationNetwork, UNet, ViTSegmenter
from lightning_vos.structures import MaskedImages


def vit(classes=3, **settings):
    return ViTSegmenter(classes, **{"name": "test_vit", "channels": 32} | settings)


def unet(classes=3, **settings):
    return UNet(classes, **{"channels": (4, 8, 8)} | settings)


@pytest.fixture(scope="module")
def deeplab():
    torch.manual_seed(0)
    return DeepLabV3(2, 50, bands=4).eval()


def images(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Networks


@pytest.mark.parametrize("make", [vit, unet])
@pytest.mark.parametrize("size", [(48, 48), (33, 50), (7, 1)])
@pytest.mark.parametrize(("classes", "bands"), [(1, 3), (21, 13)])
def test_every_pixel_of_an_image_of_any_size_gets_scores(make, size, classes, bands):
    network = make(classes, bands=bands)
    logits = network(images(2, bands, *size))
    assert logits.shape == (2, classes, *size)
    logits.square().mean().backward()
    assert all(p.grad is not None for p in network.parameters())  # distributed training stops at others


@pytest.mark.parametrize("size", [(40, 40), (33, 50)])
def test_deeplab_takes_other_bands(deeplab, size):
    assert deeplab(images(1, 4, *size)).shape == (1, 2, *size)


def test_deeplab_does_not_train_on_one_image_a_batch(deeplab):
    with pytest.raises(ConfigError, match=r"--data.batch_size to 2"):
        deeplab.train()(images(1, 4, 40, 40))
    deeplab.eval()


@pytest.mark.parametrize("make", [vit, unet])
def test_an_image_is_padded_with_the_mean_to_the_right_and_below(make):
    network = make().eval()
    found, multiple = network(images(1, 3, 33, 50)), network.multiple
    padded = torch.zeros(1, 3, 33 + -33 % multiple, 50 + -50 % multiple)
    padded[..., :33, :50] = images(1, 3, 33, 50)
    assert torch.equal(found, network(padded)[..., :33, :50])


@torch.no_grad()
@pytest.mark.parametrize("make", [vit, unet])
def test_the_position_of_what_is_seen_is_kept(make):
    torch.manual_seed(0)
    network, image = make().eval(), torch.zeros(1, 3, 32, 96)
    if make is vit:  # without what lets patches know of each other
        for block in network.backbone.blocks:
            block.attn.proj.weight.zero_()
        network.decoder = nn.Conv2d(64, 3, 1)
    changed = image.clone()
    changed[:, :, 16:, 80:] = torch.randn(16, 16)
    difference = (network(image) - network(changed)).abs().amax(dim=(0, 1))
    assert not difference[:, :48].any()
    assert difference[16:, 80:].mean() > 2 * difference[:16, 80:].mean() > 0


@pytest.mark.parametrize("make", [vit, unet])
def test_other_bands_are_refused(make):
    with pytest.raises(ConfigError, match=r"have 13 bands, the network takes 3.\nSet --model.network.bands=13"):
        make()(images(1, 13, 32, 32))


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (vit, {"classes": 0}),
        (vit, {"bands": 0}),
        (vit, {"channels": 48}),
        (unet, {"classes": 0}),
        (unet, {"channels": (8,)}),
        (DeepLabV3, {"classes": 2, "depth": 18}),
        (DeepLabV3, {"classes": 0}),
    ],
)
def test_impossible_networks_are_refused(make, settings):
    with torch.device("meta"), pytest.raises(ValueError, match="expected"):
        make(**settings)


@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224", "vit_of_nobody"])
def test_what_is_no_vision_transformer_is_refused(name):
    with torch.device("meta"), pytest.raises(ConfigError, match=name):
        ViTSegmenter(2, name)


def test_the_u_net_has_the_channels_of_the_published_one():
    with torch.device("meta"):
        network = UNet(8, 13)
    assert network.multiple == 16
    encoder = [(scale[0].in_channels, scale[0].out_channels, scale[3].out_channels) for scale in network.down]
    assert encoder == [(13, 64, 64), (64, 128, 128), (128, 256, 256), (256, 512, 512), (512, 512, 512)]
    assert [scale[0].in_channels for scale in network.up] == [1024, 512, 256, 128]
    assert (network.head.in_channels, network.head.out_channels, network.head.kernel_size) == (64, 8, (1, 1))


# Start weights


@pytest.fixture
def pretrained(monkeypatch):
    """Makes a state dict what a name of weights stands for."""

    def pretend(state):
        monkeypatch.setattr(segmentation_networks, "start_state", lambda name, option: {"weights": state}[name])

    return pretend


@pytest.mark.parametrize("side", [160, 96])
@pytest.mark.parametrize("bands", [3, 5])
def test_a_vit_starts_from_weights_of_other_sizes_and_bands(pretrained, side, bands):
    torch.manual_seed(1)
    state = timm.create_model("test_vit", img_size=side).state_dict()
    pretrained(state)
    network = vit(start_weights="weights", bands=bands)
    before = network.decoder[0].weight.clone()
    network.load_start_weights()
    own = network.backbone.state_dict()
    assert torch.equal(own["blocks.5.mlp.fc2.weight"], state["blocks.5.mlp.fc2.weight"])
    assert torch.equal(own["pos_embed"], state["pos_embed"]) == (side == 160)
    kernel = state["patch_embed.proj.weight"]
    assert torch.equal(own["patch_embed.proj.weight"], kernel) == (bands == 3)
    assert own["patch_embed.proj.weight"].sum() == pytest.approx(float(kernel.sum()), rel=0.5, abs=5)
    assert torch.equal(network.decoder[0].weight, before)


@pytest.mark.parametrize("bands", [3, 4])
def test_deeplab_starts_from_a_resnet(pretrained, bands):
    state = timm.create_model("resnet50").state_dict()
    pretrained(state)
    network = DeepLabV3(2, 50, start_weights="weights", bands=bands)
    network.load_start_weights()
    own = network.backbone.state_dict()
    assert not own.keys() - state.keys()
    same = {name for name in own if torch.equal(own[name], state[name])}
    assert own.keys() - same == ({"conv1.weight"} if bands == 4 else set())


def test_weights_that_do_not_fit_are_refused(pretrained):
    state = timm.create_model("test_vit").state_dict()
    pretrained({name: value for name, value in state.items() if "blocks.3" not in name})
    with pytest.raises(CheckpointError, match=r"'weights' do not fit(.|\n)*blocks.3(.|\n)*--model.network.start"):
        vit(start_weights="weights").load_start_weights()


@pytest.mark.parametrize("make", [vit, unet])
def test_random_weights_stay(make):
    network = make()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.load_start_weights()
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


# The loss


def test_the_loss_is_a_mean_over_what_is_learnt():
    logits, masks = images(2, 4, 5, 6).requires_grad_(), torch.randint(4, (2, 5, 6))
    masks[0, :, 3:] = 255
    loss = cross_entropy(logits, masks)
    learnt = masks != 255
    classes = masks[learnt]
    chances = logits.permute(0, 2, 3, 1)[learnt].log_softmax(dim=1)
    assert loss.item() == pytest.approx(-chances[torch.arange(len(classes)), classes].mean().item(), rel=1e-5)
    loss.backward()
    assert not logits.grad.permute(0, 2, 3, 1)[~learnt].any()


def test_a_batch_from_which_nothing_is_learnt_changes_nothing():
    network = unet()
    module = SegmentationFromMasks(network)
    module.log = lambda *_, **__: None
    loss = module.training_step(MaskedImages(images(2, 3, 16, 16), torch.full((2, 16, 16), 255), ["a", "b"]), 0)
    loss.backward()
    assert loss == 0
    assert not any(p.grad.any() for p in network.parameters())


def test_one_class_is_everywhere():
    network = vit(1).eval()
    assert cross_entropy(network(images(2, 3, 32, 32)), torch.zeros(2, 32, 32, dtype=torch.long)) == 0
    assert not segment(network, images(3, 20, 30), (40, 60)).any()


def test_the_loss_is_single_precision_whatever_the_logits_are():
    assert cross_entropy(images(1, 2, 4, 4).half(), torch.zeros(1, 4, 4, dtype=torch.long)).dtype == torch.float32


# How images are seen


class Pixelwise(SegmentationNetwork):
    """Two classes: a pixel below 0 and a pixel above; louder for images of some widths, tilted to the left."""

    def __init__(self, loud=(), tilt=0.0):
        super().__init__(2, 1, 1, nn.Identity())
        self.loud, self.tilt, self.seen = dict(loud), tilt, []

    def coarse(self, images):
        self.seen.append(images)
        width = images.shape[3]
        push = self.tilt * torch.linspace(1, -1, width)
        return self.loud.get(width, 1.0) * torch.cat([-images + push, images - push], dim=1)


def test_classes_come_at_the_size_of_the_image_on_disk():
    pixels = torch.tensor([[-1.0, -1.0, 1.0, 1.0]]).expand(1, 4, 4)
    found = segment(Pixelwise(), pixels, (8, 16))
    assert (found.shape, found.dtype) == ((8, 16), torch.int64)
    assert torch.equal(found, (torch.arange(16) >= 8).long().expand(8, 16))


def test_an_image_is_seen_at_its_scales_and_flipped():
    network = Pixelwise()
    segment(network, images(1, 20, 30), (20, 30), Views((1.0, 0.5, 1.25), flip=True))
    assert [tuple(seen.shape[2:]) for seen in network.seen] == [(20, 30)] * 2 + [(10, 15)] * 2 + [(25, 38)] * 2
    for seen, flipped in zip(network.seen[::2], network.seen[1::2], strict=True):
        assert torch.equal(seen.flip(-1), flipped)


def test_flips_cancel_what_leans_to_one_side():
    pixels = torch.full((1, 4, 8), 0.2)
    assert segment(Pixelwise(tilt=1.0), pixels, (4, 8)).float().mean() < 0.7
    assert segment(Pixelwise(tilt=1.0), pixels, (4, 8), Views(flip=True)).all()


@pytest.mark.parametrize(("merge", "expected"), [("max", 1), ("mean", 0)])
def test_scales_are_merged_by_their_largest_logit_or_their_mean(merge, expected):
    """At twice the size the network is of the other mind: the mean goes with the two, the maximum with the loudest."""
    pixels = torch.full((1, 4, 4), -1.0)
    network = Pixelwise(loud={8: -1.5})
    assert (segment(network, pixels, (4, 4), Views((1.0, 2.0, 1.25), merge=merge)) == expected).all()


@pytest.mark.parametrize("settings", [{"scales": ()}, {"scales": (1.0, 0.0)}, {"merge": "median"}])
def test_impossible_views_are_refused(settings):
    with pytest.raises(ValueError, match="expected factors above 0"):
        Views(**settings)


# What cannot run


def prepared(module, **data):
    """The module in a run with such data; the trainer must be kept."""
    class_set = ClassSet("three", ("background", "cat", "dog"))
    trainer = SimpleNamespace(precision="32-true", datamodule=SimpleNamespace(**{"class_set": class_set} | data))
    module._trainer = trainer
    return module


def test_it_must_be_said_what_to_train_on():
    with pytest.raises(ConfigError) as error:
        prepared(SegmentationFromMasks(unet(3)), train_masks=None).setup("fit")
    assert "--data.train_masks FOLDER" in str(error.value)
    assert len(str(error.value).splitlines()) <= 8
    prepared(SegmentationFromMasks(unet(3)), train_masks=None).setup("test")
    prepared(SegmentationFromMasks(unet(3)), train_masks="own").setup("fit")


def test_the_head_learns_faster_than_the_backbone_and_norms_do_not_decay():
    module = prepared(SegmentationFromMasks(vit()))
    module._trainer.estimated_stepping_batches = 1000
    configured = module.configure_optimizers()
    groups = configured["optimizer"].param_groups
    assert sum(len(group["params"]) for group in groups) == len(list(module.network.parameters()))
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    body = module.network.backbone
    assert decay[id(body.pos_embed)] == decay[id(body.norm.weight)] == decay[id(module.network.decoder[1].weight)] == 0
    assert decay[id(body.blocks[0].attn.qkv.weight)] == decay[id(module.network.decoder[0].weight)] == 0.01
    scheduler = configured["lr_scheduler"]["scheduler"]
    inner = {id(p) for p in body.parameters()}
    for group, factor in zip(groups, scheduler.lr_lambdas, strict=True):
        peak = group["initial_lr"] * factor(75)
        assert peak == pytest.approx(6e-5 if id(group["params"][0]) in inner else 6e-4, rel=0.02)
        assert 1e-6 <= group["initial_lr"] * factor(1000) < 5e-6
