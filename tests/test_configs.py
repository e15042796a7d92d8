"""Every recipe, dataset and logger that ships goes through the real command line, and its model is built."""

import pytest
import torch
import yaml
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import instantiate_module

from lightning_vos.config_files import shipped_configs
from lightning_vos.models.hodor.cycles import paths
from lightning_vos.models.hodor.module import HODOR
from lightning_vos.models.mavos import memory as policies
from lightning_vos.models.mavos.module import MAVOS
from lightning_vos.models.qmvos.module import QMVOS
from lightning_vos.models.taformer.module import TAFormer
from lightning_vos.published import METHODS

CONFIGS = shipped_configs()
RECIPES = sorted(path.name for path in CONFIGS.glob("*.yaml") if path.name != "base.yaml")
DATA = sorted(path.name for path in CONFIGS.glob("data/*.yaml"))
MEMORIES = {
    "append": policies.Append,
    "capped": policies.Capped,
    "cross_attention": policies.CrossAttentionMemory,
    "focal": policies.FocalMemory,
    "gcvit": policies.GlobalContextMemory,
    "mca": policies.ModulatedCrossAttentionMemory,
    "previous_only": policies.PreviousOnly,
    "reference_only": policies.ReferenceOnly,
    "reference_previous": policies.ReferencePrevious,
}
FINDING = [name for name in RECIPES if name.startswith(("seqformer", "taformer"))]  # instances, without masks
OF_IMAGES = [name for name in RECIPES if name.startswith(("segmentation", "token_masking"))]


PRINTED = {}  # what was printed for words, which several tests look at


def printed(command, verb, *files, words=()):
    options = [word for file in files for word in ("--config", f"configs/{file}")]
    asked = (verb, *options, *words)
    if asked not in PRINTED:
        finished = command(*asked, "--print_config")
        assert finished.status == 0, finished.err
        PRINTED[asked] = finished.out
    return yaml.safe_load(PRINTED[asked])


def test_there_are_recipes_and_parts():
    assert {"demo.yaml", "mavos_mobilenetv2.yaml", "mavos_r50.yaml"} <= set(RECIPES)
    assert {"davis2016.yaml", "davis2017.yaml", "folder.yaml", "lvos.yaml", "synthetic.yaml"} <= set(DATA)
    assert [path.name for path in CONFIGS.glob("logger/*.yaml")] == ["wandb.yaml"]
    assert {recipe_of(name) for name in METHODS} <= set(RECIPES)
    unpublished = {"taformer_r50", "taformer_r101", "taformer_swinl"}
    assert set(METHODS) | unpublished == {path.stem for path in CONFIGS.glob("model/*.yaml")}


def recipe_of(published):
    """The recipe of the network; HODOR has one for each stage of its training."""
    others = {
        "hodor": "hodor_static.yaml",
        "xmem": "xmem_r50.yaml",
        "qmvos": "qmvos_r50.yaml",
        "token_masking": "token_masking_official.yaml",
    }
    return others.get(published, f"{published}.yaml")


def size_of(data):
    """(H, W) of the clips that are trained on."""
    crop = data["transform"]["init_args"]["crop"]
    return tuple(data.get("size") or (crop, crop))


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_stands_by_itself(command, tmp_path, monkeypatch, recipe):
    monkeypatch.chdir(tmp_path)
    config = printed(command, "fit", recipe)
    assert list(tmp_path.iterdir()) == []
    assert config["seed_everything"] == 0
    assert config["trainer"]["max_steps"] > 0
    assert config["trainer"]["use_distributed_sampler"] is False
    module = built(config)
    data = config["data"]["init_args"]
    instantiate_module(LightningDataModule, {"_class_path": config["data"]["class_path"], **data})
    if type(module) is HODOR:
        length = data["length"] if "length" in data else data["sampler"]["init_args"]["length"]
        assert paths(module.cycle, length, 0)  # clips of that length have cycles
        return
    if type(module) is QMVOS:
        assert data["sampler"]["init_args"]["length"] >= 2
        assert data["max_objects"] == module.max_objects  # more are refused, fewer leave slots empty
        assert module.network.canvas.view(size_of(data), size_of(data)).network == size_of(data)  # nothing is padded
        return
    if recipe in OF_IMAGES:
        assert data["transform"]["crop"] >= 64
        return
    if type(module) is TAFormer:
        checkpoints = [one for one in config["trainer"]["callbacks"] if "ModelCheckpoint" in one["class_path"]]
        assert [one["init_args"]["monitor"] for one in checkpoints] == ["val/AP"]
        assert data["length"] > 1
        return
    assert type(module) is MAVOS
    interval = module.network.train_rules.interval
    if module.network.policy.is_learned:
        assert data["sampler"]["init_args"]["length"] >= 2 * interval + 2  # else the memory does not learn
    assert module.network.canvas.view(size_of(data)).network == size_of(data)  # trained at the size of the crop


def built(config):
    model = config["model"]
    with torch.device("meta"):
        return instantiate_module(LightningModule, {"_class_path": model["class_path"], **model["init_args"]})


@pytest.mark.parametrize("name", [name for name in METHODS if name != "token_masking"])  # its files tell its size
def test_a_recipe_builds_the_published_network(command, name):
    """What `load_published` gives and what a recipe trains are one network: entries, sizes and rules of the test."""
    ours = built(printed(command, "fit", recipe_of(name))).network
    with torch.device("meta"):
        theirs = METHODS[name].build(name)
    assert {key: value.shape for key, value in ours.state_dict().items()} == {
        key: value.shape for key, value in theirs.state_dict().items()
    }
    if recipe_of(name) in FINDING:
        assert (ours.classes, ours.first_class) == (theirs.classes, theirs.first_class)
    else:
        assert (ours.test_rules, ours.canvas) == (theirs.test_rules, theirs.canvas)
    assert ours.backbone.name == theirs.backbone.name


def test_every_memory_is_there():
    assert {path.stem for path in CONFIGS.glob("memory/*.yaml")} == set(MEMORIES)


@pytest.mark.parametrize(
    ("memory", "recipe"),
    [
        *((memory, "mavos_r50.yaml") for memory in MEMORIES),
        ("capped", "aotl_mobilenetv2.yaml"),
        ("focal", "xmem_r50.yaml"),
        ("capped", "qmvos_r50.yaml"),
    ],
)
def test_a_memory_goes_with_any_recipe(command, memory, recipe):
    network = built(printed(command, "fit", recipe, f"memory/{memory}.yaml")).network
    assert type(network.policy) is MEMORIES[memory]
    parts = {"aotl_mobilenetv2.yaml": (256, 256), "mavos_r50.yaml": (128, 512, 512)}
    assert network.policy.parts == parts.get(recipe, (64, 512))


@pytest.mark.parametrize("recipe", ["deaotl_r50.yaml", "deaotl_swinb.yaml", "aotl_mobilenetv2.yaml"])
def test_baselines_hold_what_their_papers_say(command, recipe):
    config = printed(command, "fit", recipe)
    model = config["model"]["init_args"]
    network = model["network"]["init_args"]
    assert (network["train_rules"]["interval"], network["test_rules"]["interval"]) == (2, 5)
    assert model["optimizer"]["init_args"]["lr"] == 2e-4
    assert model["schedule"]["floor"] == (2e-5 if "mobilenet" in recipe else 1e-5)
    assert config["data"]["init_args"]["sampler"]["init_args"]["length"] == 5
    transform = config["data"]["init_args"]["transform"]["init_args"]
    assert transform["crop"] == (464 if "swinb" in recipe else 465)
    assert (transform["jitter"] > 0) == ("deaot" in recipe)


def test_pre_training_holds_what_the_paper_says(command):
    config = printed(command, "fit", "mavos_r50_static.yaml")
    model = config["model"]["init_args"]
    assert model["optimizer"]["init_args"]["lr"] == 4e-4
    assert model["optimizer"]["init_args"]["weight_decay"] == 0.03
    assert model["schedule"]["floor"] == 2e-5
    assert (model["sequential_from"], model["auxiliary_until"]) == (1.0, 0.1)
    assert config["data"]["init_args"]["merge"] == 1.0
    static, main = built(config).network, built(printed(command, "fit", "mavos_r50.yaml")).network
    lacked = main.state_dict().keys() - static.state_dict().keys()
    assert {name.partition(".")[0] for name in lacked} == {"policy"}
    assert not static.state_dict().keys() - main.state_dict().keys()
    assert static.test_rules.interval < 8  # pseudo-videos of 8 frames read what they remember


def test_the_checkpoint_for_lvos_is_trained_as_the_paper_says(command):
    assert printed(command, "fit", "mavos_r50_lvos.yaml")["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 1e-5


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--data.sampler.length=9"], {"length": 9, "max_gap": 12}),
        (
            ["--data.sampler=datamodules.samplers.JumpSampler", "--data.sampler.length=4"],
            {"length": 4, "steps": 150_000},
        ),
        (["--data.sampler=datamodules.samplers.ConsecutiveSampler"], {"length": 8, "reverse": 0.5}),
    ],
)
def test_samplers_are_chosen_by_their_names(command, words, expected):
    sampler = printed(command, "fit", "mavos_r50.yaml", words=words)["data"]["init_args"]["sampler"]
    assert expected.items() <= sampler["init_args"].items()


@pytest.mark.parametrize("recipe", ["mavos_mobilenetv2.yaml", "mavos_r50.yaml", "mavos_swinb.yaml"])
def test_published_recipes_hold_what_the_paper_says(command, recipe):
    config = printed(command, "fit", recipe)
    model = config["model"]["init_args"]
    network = model["network"]["init_args"]
    assert network["train_rules"]["interval"] == 2
    assert network["test_rules"]["interval"] == 10
    assert network["window"] == 15
    assert (network["layers"], network["channels"]) == (3, 256)
    assert model["schedule"]["floor"] == (2e-5 if "mobilenet" in recipe else 1e-5)
    assert config["data"]["init_args"]["sampler"]["init_args"]["length"] == 8
    assert config["data"]["init_args"]["transform"]["init_args"]["crop"] == (464 if "swinb" in recipe else 465)
    assert config["trainer"]["max_steps"] == 100_000
    data = config["data"]["init_args"]
    assert (data["parts"].keys(), data["repeats"]) == ({"youtube_vos", "davis"}, {"davis": 5})
    videos = data["parts"]["youtube_vos"]["init_args"]
    assert (videos["year"], videos["train_split"], videos["leave_out_blank"]) == (2019, "train", False)
    assert config["trainer"]["gradient_clip_val"] == 5.0


@pytest.mark.parametrize(
    ("recipe", "rate", "steps", "main", "drop", "bootstrap"),
    [
        ("xmem_r50.yaml", 1e-5, 110_000, 100_000, 80_000, (20_000, 70_000)),
        ("qmvos_r50.yaml", 2e-5, 65_000, 60_000, 50_000, (10_000, 40_000)),
    ],
)
def test_xmem_and_qmvos_are_trained_as_published(command, recipe, rate, steps, main, drop, bootstrap):
    config = printed(command, "fit", recipe)
    assert config["trainer"]["max_steps"] == steps
    assert "gradient_clip_val" not in config["trainer"] or config["trainer"]["gradient_clip_val"] is None
    optimizer = config["model"]["init_args"]["optimizer"]["init_args"]
    assert (optimizer["lr"], optimizer["weight_decay"]) == (rate, 0.05)
    module = built(config)
    rates = [module.schedule.rate(step, steps, rate) for step in (0, drop - 1, drop + 1, steps)]
    assert rates == pytest.approx([rate, rate, rate / 10, rate / 10])
    loss = module.loss
    assert (loss.start * steps, loss.end * steps, loss.hardest) == (
        *(pytest.approx(at, abs=1) for at in bootstrap),
        0.15,
    )
    data = config["data"]["init_args"]
    assert (data["merge"], data["max_objects"], data["repeats"]) == (0, 3, {"davis": 5})
    assert data["parts"]["youtube_vos"]["init_args"]["leave_out_blank"] is True
    sampler, transform = data["sampler"]["init_args"], data["transform"]["init_args"]
    assert (sampler["length"], sampler["steps"], sampler["jumps"]) == (8, main, [5, 10, 15, 5])
    geometry = {"crop": 384, "area": [0.36, 1.0], "rotation": 15, "shear": 10}
    assert transform == {**geometry, "fine_tune_from": main, "min_pixels": 0}


@pytest.mark.parametrize(
    ("recipe", "rate", "steps", "bootstrap"),
    [
        ("xmem_r50_static.yaml", 1e-5, 150_000, (20_000, 70_000)),
        ("qmvos_r50_static.yaml", 2e-5, 80_000, (10_000, 40_000)),
    ],
)
def test_xmem_and_qmvos_start_from_still_images_as_published(command, recipe, rate, steps, bootstrap):
    config = printed(command, "fit", recipe)
    assert config["trainer"]["max_steps"] == steps
    assert config["model"]["init_args"]["optimizer"]["init_args"]["lr"] == rate
    module = built(config)
    assert {module.schedule.rate(step, steps, rate) for step in (0, steps // 2, steps)} == {rate}
    assert (module.loss.start * steps, module.loss.end * steps) == pytest.approx(bootstrap, abs=1)
    assert (module.max_objects, module.references) == (1, 2)
    data = config["data"]["init_args"]
    assert (data["merge"], data["max_objects"], data["sampler"]["init_args"]["length"]) == (0, 1, 3)
    sets = {one if isinstance(one, str) else one["name"]: isinstance(one, str) or one["repeat"] for one in data["sets"]}
    assert sets == {"fss": 1, "DUTS-TR": 1, "DUTS-TE": 1, "ECSSD": 1, "BIG_small": 5, "HRSOD_small": 5}
    motion = {"zoom": [0.8, 1.5], "flip": 0.5, "scale": [0.9, 1.1], "rotation": 20, "shear": 10}
    assert data["transform"]["init_args"] == {"crop": 384, "min_pixels": 0, "spline": 0.33, "bend": 0.02} | motion
    main = built(printed(command, "fit", recipe.replace("_static", "")))
    assert module.network.state_dict().keys() == main.network.state_dict().keys()


def test_xmem_goes_on_with_rendered_videos_as_published(command):
    config = printed(command, "fit", "xmem_r50_bl30k.yaml")
    assert config["trainer"]["max_steps"] == 250_000
    module = built(config)
    rates = [module.schedule.rate(step, 250_000, 1e-5) for step in (0, 199_999, 200_000, 250_000)]
    assert rates == pytest.approx([1e-5, 1e-5, 1e-6, 1e-6])
    assert (module.loss.start * 250_000, module.loss.end * 250_000) == pytest.approx((20_000, 70_000))
    assert (module.max_objects, module.references) == (3, 3)
    sampler, transform = (config["data"]["init_args"][part]["init_args"] for part in ("sampler", "transform"))
    assert (sampler["length"], sampler["steps"], sampler["since"]) == (8, 250_000, [0, 0.1, 0.3, 0.8])
    assert transform == {"crop": 384, "area": [0.25, 1.0], "min_pixels": 0, "fine_tune_from": None} | {
        "rotation": 0,
        "shear": 0,
    }


@pytest.mark.parametrize(
    ("recipe", "backbone", "frames", "epochs", "drops", "rate", "batch"),
    [
        ("seqformer_r50.yaml", "resnet50", 61_800, 12, (2, 10), 2e-4, 2),
        ("seqformer_r50_joint.yaml", "resnet50", 151_800, 12, (4, 10), 2e-4, 2),
        ("seqformer_r101.yaml", "resnet101", 151_800, 12, (4, 10), 2e-4, 2),
        ("seqformer_swinl.yaml", "swin_large_patch4_window12_384", 151_800, 12, (4, 10), 2e-4, 1),
        ("taformer_r50.yaml", "resnet50", 61_800, 6, (3, 5), 1e-4, 4),
        ("taformer_r101.yaml", "resnet101", 61_800, 6, (3, 5), 1e-4, 4),
        ("taformer_swinl.yaml", "swin_large_patch4_window12_384", 61_800, 6, (3, 5), 1e-4, 1),
        ("taformer_r50_ytvis21.yaml", "resnet50", 90_200, 6, (3, 5), 1e-4, 4),
        ("taformer_r50_coco.yaml", "resnet50", 117_266, 24, (20,), 1e-4, 4),
    ],
)
def test_taformer_and_seqformer_are_trained_as_published(command, recipe, backbone, frames, epochs, drops, rate, batch):
    config = printed(command, "fit", recipe)
    steps = config["trainer"]["max_steps"]
    assert steps == pytest.approx(epochs * frames / 16, rel=0.002)
    assert config["trainer"]["gradient_clip_val"] == 0.1
    optimizer = config["model"]["init_args"]["optimizer"]["init_args"]
    assert (optimizer["lr"], optimizer["weight_decay"]) == (rate, 1e-4)
    module = built(config)
    assert module.network.backbone.name == backbone
    assert (module.backbone_factor, module.offsets_factor) == (0.1, 0.1)
    ends = [steps * drop // epochs for drop in drops]
    rates = [module.schedule.rate(step, steps, 1.0) for end in (*ends, steps) for step in (end - 2, end + 2)]
    assert rates == pytest.approx([0.1 ** ((number + 1) // 2) for number in range(len(rates) - 1)] + rates[-2:-1])
    has_additions = recipe.startswith("taformer")
    assert (module.network.contrastive_head is not None) == has_additions
    assert module.network.classes == (91 if "coco" in recipe else 42)
    data = config["data"]["init_args"]
    assert (data["length"], data["batch_size"]) == (5, batch)
    assert (data.get("coco") is not None) == (recipe.startswith("seqformer") and recipe != "seqformer_r50.yaml")
    if "coco" in recipe:
        assert (data["motion"], data["augmentation"]["distort"]) == ("rotation", 0)
    else:
        assert data["year"] == (2021 if "21" in recipe else 2019)


def test_xmem_is_trained_with_the_recipe_of_qmvos(command):
    """The baseline of the paper: "retrained with the same configuration"."""
    words = ["--model.network.queries=null", "--data.transform.rotation=0", "--model.optimizer.lr=1e-5"]
    config = printed(command, "fit", "qmvos_r50.yaml", words=words)
    assert built(config).network.queries is None
    assert config["data"]["init_args"]["transform"]["init_args"]["rotation"] == 0
    assert config["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 1e-5


def test_the_augmentation_of_xmem_is_checked(command):
    finished = command("fit", "--config", "configs/xmem_r50.yaml", "--data.transform.crop=big", "--print_config")
    assert finished.status != 0
    assert "expected: int" in finished.err


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        (["--model.network.memory.value_layout=spatial"], ("memory", "init_args", "value_layout"), "spatial"),
        (["--model.network.memory.levels=3"], ("memory", "init_args", "levels"), 3),
        (["--model.network.test_rules.interval=5"], ("test_rules", "interval"), 5),
        (["--model.network.backbone.start_weights=null"], ("backbone", "init_args", "start_weights"), None),
        (["--model.network.backbone.start_weights", "null"], ("backbone", "init_args", "start_weights"), None),
        (["--model.network.backbone.start_weights=None"], ("backbone", "init_args", "start_weights"), None),
    ],
)
def test_options_that_messages_and_pages_name_are_there(command, words, key, value):
    memory = ["--model.network.memory=lightning_vos.models.mavos.memory.ModulatedCrossAttentionMemory"]
    found = printed(command, "fit", "mavos_r50.yaml", words=[*memory, *words])["model"]["init_args"]["network"][
        "init_args"
    ]
    for part in key:
        found = found[part]
    assert found == value
