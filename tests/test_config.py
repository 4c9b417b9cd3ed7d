"""A config is typed and closed, says what to change, and names its run's folder."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import pytest

from npas import config as schema
from npas import models, tasks
from npas.config import (
    HASH_EXCLUDED,
    PruningConfig,
    config_hash,
    ignored,
    load_config,
    run_dir,
    to_dict,
)
from npas.config.optim import MuonConfig
from npas.config.schema import settings
from npas.config.typed import build
from npas.tasks.imagenet import task as imagenet
from npas.utils.checks import Ranged, intervals_of


@dataclass
class ToyModel:
    family: str = "toy"
    depth: int = 10
    width: float = 2.0

    def __post_init__(self):
        if self.depth % 2:
            raise ValueError(f"depth must be even, got {self.depth}")


@dataclass
class ToyTask:
    family: str = "toy"
    classes: int = 10


def checked(**changes):
    """Check a small config with these keys; a dot in a key is written as two underscores."""
    raw = {"budget": 0.1, "model": {"family": "toy"}, "task": {"family": "toy"}}
    for key, value in changes.items():
        node, _, leaf = key.rpartition("__")
        (raw.setdefault(node, {}) if node else raw)[leaf] = value
    return load_config(raw, ToyModel, ToyTask)


# Changes, and what the one line must hold.
WRONG = [
    ({"bugdet": 0.1}, "unknown key 'bugdet': did you mean 'budget'?"),
    ({"optim__learning_rat": 0.1}, "unknown key 'optim.learning_rat': optim has"),
    ({"lr": 0.1}, "unknown key 'lr': did you mean 'optim.lr'?"),
    ({"sharing__budget": 0.1}, "unknown key 'sharing.budget': did you mean 'budget'?"),
    ({"optmi": {"lr": 0.1}}, "unknown key 'optmi.lr': did you mean 'optim.lr'?"),
    ({"model__depht": 10}, "unknown key 'model.depht': did you mean 'model.depth'?"),
    ({"qqq": 1}, "unknown key 'qqq': there are artifact, batch_size, budget"),
    ({"model__depth": 11}, "model: depth must be even, got 11"),
    ({"optim": 0.1}, "optim must be a mapping of keys, got 0.1"),
    ({"epochs": -3}, "epochs must be at least 1, got -3"),
    ({"epochs": 1.5}, "epochs must be an integer, got 1.5"),
    ({"seed": 2**32}, "seed must be below 4294967296"),
    ({"precision": "fp8"}, "precision must be fp32, bf16 or fp16, got 'fp8'"),
    ({"resume": " "}, "resume must not be empty"),
    ({"distill": {"teacher": ""}}, "distill.teacher must not be empty"),
    ({"recipe_version": 7}, "recipe_version must be 1, got 7"),
    ({"exp": "../elsewhere"}, "exp must be a folder name"),
    ({"eval_only": True}, "eval_only=true evaluates trained weights: set sharing.init"),
    (
        {"eval_only": True, "sharing__init": "fit", "pruning__method": "hrank"},
        "takes no step that prunes: set pruning.method=null",
    ),
    ({"eval_only": True, "sharing__init": "fit", "dry_run": True}, "and dry_run=true one: leave"),
    ({"budget": None}, "budget is missing: set budget=0.1, budget=dense or sharing.templates"),
    ({"sharing__templates": 2}, "budget=0.1 and sharing.templates=2 exclude each other"),
    ({"sharing__generator": "mpl"}, "there is no 'mpl'; did you mean mlp?"),
    ({"sharing__groups": "all"}, "sharing.groups must be single, type, shape, random, learned"),
    ({"sharing__groups": "runs/none"}, "sharing.groups=runs/none cannot be read (No such file"),
    ({"sharing__groups": "random"}, "sharing.groups=random needs a number of groups"),
    ({"sharing__num_groups": 3}, "sharing.num_groups=3 is for sharing.groups=random, learned or"),
    *(
        (
            {"sharing": {"groups": groups, "num_groups": 2, "generator": name}},
            f"not with sharing.generator={name}: choose wavg or emb",
        )
        for groups, names in (("learned", ("avg", "mlp", "hash")), ("gradient", ("mlp", "tiles")))
        for name in names
    ),
    (
        {"sharing": {"groups": "learned", "num_groups": 2, "templates": 2}, "budget": None},
        "does not find: set a budget",
    ),
    (
        {"sharing": {"generator": "hash", "recurrence_weight": 0.1}},
        "sharing.generator=hash has no coefficients of shared templates for",
    ),
    ({"optim__lr": 0}, "optim.lr must be above 0"),
    ({"optim__lr": float("nan")}, "optim.lr must be a finite number"),
    ({"optim__warmup_epochs": 21, "epochs": 20}, "optim.warmup_epochs=21 is longer than epochs=20"),
    ({"optim__momentum": 0}, "optim.nesterov=true needs momentum"),
    ({"optim__milestones": [3, 2]}, "optim.milestones must be increasing epochs above 0"),
    ({"trainer__device": "tpu"}, "trainer.device must be auto, cpu or cuda, got 'tpu'"),
    ({"sharing__groups": "depth:0"}, "place, depth:2, a mapping"),
    ({"optim__muon": {"bank": "sgd"}}, "optim.muon.bank must be adam or templates"),
    ({"optim__muon": {"embeding_lr": 1}}, "did you mean 'optim.muon.embedding_lr'?"),
]


@pytest.mark.parametrize(("changes", "line"), WRONG, ids=lambda value: str(value)[:50])
def test_what_is_wrong_is_one_line_that_names_the_key(changes, line):
    with pytest.raises(ValueError) as caught:
        checked(**changes)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


NODES = [
    *(
        node
        for node in vars(schema).values()
        if isinstance(node, type) and issubclass(node, Ranged)
    ),
    *(models.family(name).Config for name in ("adapt", "bert", "densenet", "gpt", "wrn")),
    *(tasks.family(name).Config for name in ("cifar", "grounding", "imagenet", "mlm", "squad")),
]


@pytest.mark.parametrize("node", NODES)
def test_a_key_outside_its_interval_is_refused_by_name(node):
    for key, text in intervals_of(node).items():
        for end, beyond in zip(text[1:-1].split(","), (-1, 1), strict=True):
            if "inf" not in end:
                with pytest.raises(ValueError) as caught:
                    node(**{key: float(end) + beyond})
                assert str(caught.value).startswith(f"{node.section}{key} must be ")


@pytest.mark.parametrize("budget", ["abc", "-1", "../..", "0.1/x", "dens", "", "18 M", "1/0"])
def test_a_text_that_is_no_budget_is_refused_without_the_method(budget):
    with pytest.raises(ValueError, match=r"is not a budget.*, or dense$"):
        load_config({"budget": budget, "model": {"family": "toy"}, "task": {"family": "toy"}})


def test_a_type_that_no_yaml_has_is_refused_in_one_line():
    @dataclass
    class Odd:
        where: Path

    with pytest.raises(ValueError, match=r"^where must be .*Path'>, got 'here'$"):
        build(Odd, {"where": "here"})


def test_values_come_out_in_the_types_of_the_schema():
    config = checked(
        epochs=1e2, optim__lr=1, exp=2024, sharing__include="head.*", sharing__groups={"stem": "a"}
    )
    assert (config.epochs, config.optim.lr, config.exp) == (100, 1.0, "2024")
    assert type(config.epochs) is int and type(config.optim.lr) is float
    assert checked(sharing__groups="depth:12").sharing.groups == "depth:12"  # and no path
    assert config.sharing.include == ["head.*"] and config.sharing.groups == {"stem": "a"}
    assert config.model == ToyModel()
    config = checked(budget="10%", model__depth=4, sharing__groups={"b*": "b", "a*": "a"})
    again = load_config(to_dict(config), ToyModel, ToyTask)  # as it is stored
    assert again == config and run_dir(again) == run_dir(config)


# --- hash and folder


LEAVES = {key: value for key, value, _ in settings(checked(), "")}
# Another valid value of every key that has more than two, or whose neighbours limit it.
OTHER = {
    "trainer.max_seconds": 60.0,
    "distill.teacher": "a run",
    "pruning.method": "hrank",
    "budget": "0.2",
    "precision": "bf16",
    "resume": "never",
    "data.val_fraction": 0.1,
    "data.source": "synthetic",
    "sharing.init": "a run",
    "sharing.generator": "emb",
    "sharing.group_weights": {"all": 2.0},
    "sharing.upsampler": "mask",
    "sharing.coefficient_init": "sparse",
    "sharing.recurrence_weight": 0.1,
    "sharing.groups": "type",
    "sharing.include": ["a"],
    "sharing.exclude": ["a"],
    "sharing.allocator": "reference",
    "optim.name": "adamw",
    "optim.milestones": [1],
    "optim.ema_decay": 0.9,
    "optim.clip_norm": 1.0,
    "optim.bank_lr": 0.01,
    "optim.coefficient_lr": 0.01,
    "optim.schedule": "cosine",
    "trainer.device": "cpu",
    "trainer.gradient_dtype": "bf16",
    "data.verify": "warn",
    "wandb.mode": "online",
    "wandb.entity": "us",
    "wandb.group": "us",
    "wandb.tags": ["a"],
}
# Keys that only ever come together with another, or have one valid value.
TOGETHER = {
    *(f"distill.{key}" for key in ("weight", "temperature", "hidden", "hidden_weight")),
    *(f"pruning.{key.name}" for key in dataclasses.fields(PruningConfig) if key.name != "method"),
    "optim.min_lr",
    "optim.decay_fraction",
    "optim.beta2",
    *(f"optim.muon.{key.name}" for key in dataclasses.fields(MuonConfig)),
    "sharing.num_groups",
    "sharing.fit_batches",
    "sharing.templates",
    "sharing.search.epochs",
    "sharing.search.softmax",
    "sharing.search.templates",
    *(f"artifact.{key}" for key in ("bits", "scheme", "compression", "expected_ratio")),
    *(f"data.synthetic.{key}" for key in ("train", "test", "epochs", "batch_size")),
    "recipe_version",
    "eval_only",
}


def other(key, value):
    if key in OTHER:
        return OTHER[key]
    if isinstance(value, bool):
        return not value
    if isinstance(value, float):
        return value / 2
    return value + 2 if isinstance(value, int) else f"{value}2"


def test_the_hash_follows_the_keys_that_decide_the_result_and_no_others():
    for key in LEAVES.keys() - TOGETHER:
        changed = checked(**{key.replace(".", "__"): other(key, LEAVES[key])})
        excluded = key in HASH_EXCLUDED or key.partition(".")[0] in HASH_EXCLUDED
        assert (config_hash(changed) == config_hash(checked())) == excluded, key
    known = schema.known_keys(task_config=imagenet.Config)  # some keys are of its alone
    for name in HASH_EXCLUDED:
        assert name in known or any(key.startswith(f"{name}.") for key in known)


def test_how_an_artifact_is_packed_decides_the_run_that_exports_one():
    settings = (("bits", 6), ("scheme", "golf"), ("compression", "lzma"), ("expected_ratio", 2))
    for given, differing in (({"budget": "0.5MB"}, 5), ({"artifact__export": True}, 4), ({}, 1)):
        found = [checked(**given, **{f"artifact__{key}": value}) for key, value in settings]
        assert len({config_hash(config) for config in (checked(**given), *found)}) == differing
    assert (checked(budget="0.5MB").cap, checked().cap) == (500_000, None)


def synthetic_run(**synthetic):
    return checked(
        data={"source": "synthetic", "synthetic": synthetic}, optim__milestones=[60], epochs=200
    )


def test_a_synthetic_run_is_no_longer_than_its_settings_say():
    config = synthetic_run()
    assert (config.epochs, config.batch_size, config.optim.milestones) == (1, 2, [])
    config = synthetic_run(epochs=300, batch_size=64)
    assert (config.epochs, config.batch_size) == (200, 64)
    assert load_config(to_dict(config), ToyModel, ToyTask) == config
    search = {"groups": "learned", "num_groups": 2, "search": {"epochs": 15}}
    short = checked(data={"source": "synthetic"}, sharing=search)
    assert short.sharing.search.epochs == 1


def test_the_folder_says_what_the_run_is_however_its_budget_is_spelled():
    folders = {run_dir(checked(budget=budget)) for budget in (0.1, "0.1", "10%", "1/10", 1e-1)}
    assert len(folders) == 1 and folders.pop().name.startswith("budget-0.1_seed-0_")
    with pytest.raises(ValueError, match="no finite decimal form"):
        checked(budget="1/3")
    config = checked(exp="mine", seed=3, budget="18m", run_root="elsewhere")
    hexadecimal = config_hash(config)[:8]
    assert run_dir(config) == Path(f"elsewhere/mine/budget-18M_seed-3_{hexadecimal}")
    templates = run_dir(checked(budget=None, sharing__templates=2))
    assert templates.name.startswith("templates-2_seed-0_")


def test_the_hash_of_a_config_stays_what_it_was():
    """Committed results are found by it: a change here is a change of RECIPE_VERSION."""

    @dataclass
    class Grown(ToyModel):
        dropout: float = 0.0  # a key added with a default leaves the hash as it is

    raw = to_dict(checked(model__depth=4))
    for kind in (ToyModel, Grown):
        assert config_hash(load_config(raw, kind, ToyTask)) == GOLDEN


def test_fits_by_bases_keep_the_hash_that_fits_had_before_there_were_codebooks():
    def hashed(**sharing):
        return config_hash(checked(sharing=sharing))

    assert hashed(init="fit", generator="basis") == hashed(
        init="fit", generator="basis", low_rank=2
    )
    found = {hashed(init="fit"), hashed(init="fit", generator="hash")}  # which a fit ignores
    assert len(found) == 1
    found |= {hashed(init="fit", generator=own) for own in ("basis", "codebook")}
    found.add(hashed(init="fit", low_rank=2))  # a codebook with corrections
    assert len(found) == 4
    assert hashed(init="fit", generator="basis") == FIT_BY_BASES
    with pytest.raises(ValueError, match="codebook takes its rows from trained weights"):
        checked(sharing={"generator": "codebook"})


def searched(**search):
    return checked(sharing={"groups": "learned", "num_groups": 4, "search": search})


# --- settings without effect


def test_a_dense_run_says_which_sharing_settings_it_ignores_and_does_not_hash_them():
    plain, set_up = checked(budget="dense"), checked(budget="dense", sharing__generator="emb")
    assert ignored(plain) == {}
    assert ignored(set_up) == {"sharing.generator": "budget=dense shares nothing"}
    rated = checked(budget="dense", optim__bank_lr=0.3, optim__coefficient_lr=0.3)
    assert set(ignored(rated)) == {"optim.bank_lr", "optim.coefficient_lr"}
    assert run_dir(plain) == run_dir(set_up)


def test_settings_without_effect_are_named_and_do_not_enter_the_hash():
    search = {"epochs": 3, "softmax": True}
    avg = {"groups": "gradient", "num_groups": 2, "generator": "avg"}
    for sharing, plain, names, reason in (
        ({"search": search}, {}, ["epochs", "softmax"], "nothing is searched"),
        (avg | {"search": {"softmax": True}}, avg, ["softmax"], "generator=avg has no coefficient"),
    ):
        found = ignored(checked(sharing=sharing))
        assert [*found] == [f"sharing.search.{name}" for name in names]
        assert all(reason in text for text in found.values())
        assert config_hash(checked(sharing=sharing)) == config_hash(checked(sharing=plain))
    assert not ignored(searched(**search))
    sharing = {"templates": 2, "upsampler": "mask", "max_templates": 4}
    reason = "sharing.templates=2 fixes what each layer mixes"
    found = ignored(checked(budget=None, sharing=sharing))
    assert found == {"sharing.upsampler": reason, "sharing.max_templates": reason}
    for sharing in ({"generator": "avg"}, {"generator": "hash"}):
        found = ignored(checked(sharing=sharing, optim__coefficient_lr=0.5))
        assert [*found] == ["optim.coefficient_lr"], found
    for sharing in (
        {},
        {"generator": "avg", "upsampler": "mask"},
        {"generator": "hash", "low_rank": 1},
    ):
        assert not ignored(checked(sharing=sharing, optim__coefficient_lr=0.5))
    teacher = {"teacher": "dense", "weight": 0}
    assert [*ignored(checked(distill=teacher))] == ["distill.teacher"]
    hidden = teacher | {"hidden": ["stem"], "hidden_weight": 0.0}
    assert "distill.hidden" in ignored(checked(distill=hidden))
    assert not ignored(checked(distill=hidden | {"hidden_weight": 1.0}))
    assert "optim.milestones" in ignored(checked(epochs=5, optim__milestones=[5, 8]))
    assert not ignored(checked(epochs=6, optim__milestones=[5, 8]))


def test_each_optimizer_says_which_settings_it_has_not():
    assert ignored(checked(optim__beta2=0.9)) == {"optim.beta2": "optim.name=sgd has no beta2"}
    for name in ("adam", "adamax", "adamw"):
        found = checked(optim__name=name, optim__nesterov=False)
        assert ignored(found) == {"optim.nesterov": f"optim.name={name} has no nesterov"}
        assert config_hash(found) == config_hash(checked(optim__name=name))
        assert not ignored(checked(optim__name=name, optim__beta2=0.9, optim__momentum=0))


def test_muons_keys_are_for_muon_alone():
    own = {"bank": "adam", "beta1": 0.8}
    assert [*ignored(checked(optim__muon=own))] == ["optim.muon.bank", "optim.muon.beta1"]
    assert config_hash(checked(optim__muon=own)) == config_hash(checked())
    muon = {"name": "muon", "beta2": 0.9, "nesterov": False}
    assert not ignored(checked(optim=muon | {"muon": own}))
    hashes = {config_hash(checked(optim=muon | {"muon": m})) for m in ({}, own)}
    assert len(hashes) == 2


GOLDEN = "de6e28b232daa526c80d5b7719ba2514a6156fa9170d2c0d0d4123c8eccc364a"
FIT_BY_BASES = "9c1e274ccc877526d8be94d8f94d1dcdf6fade6d6e64953254ffbf951d1ffa01"
