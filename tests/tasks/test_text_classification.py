"""A user's own texts are read as rows with a label, from CSV, TSV or JSON lines."""

import json

import helpers
import pytest
import torch

from npas.cli import evaluate, export, train
from npas.models import InputSpec, bert, build, transformers
from npas.reporting import results
from npas.tasks.common import synthetic_text

ROWS = [("Alan played the flute.", "play"), ("Eva moved to Rome, in 1900.", "move"), ("", "play")]
SMALL = {"layers": 1, "hidden": 16, "heads": 2, "intermediate": 16, "positions": 64}


def csv(rows, separator=","):
    return "".join(f'"{a}"{separator}{b}\n' for a, b in [("text", "label"), *rows])


def lines(rows):
    return "".join(json.dumps({"text": a, "label": b}) + "\n\n" for a, b in rows)


@pytest.fixture
def root(tmp_path):
    """Return a data root with a tokenizer and the set `lives`: 12, 3 and 3 texts in CSV."""
    synthetic_text.write_tokenizer(tmp_path)
    folder = tmp_path / "lives"
    folder.mkdir()
    for name, rows in (("train", ROWS * 4), ("test", ROWS), ("val", ROWS)):
        (folder / f"{name}.csv").write_text(csv(rows), encoding="utf-8-sig")
    return tmp_path


def make(root, fraction=None, **keys):
    given = {"train_file": "lives/train.csv", "test_file": "lives/test.csv", "max_length": 8}
    keys, data = given | {"tokenizer": str(root / "tokenizer")} | keys, {"val_fraction": fraction}
    return helpers.make("text_classification", root, data=data, ready=False, **keys)


def refused(act, line):
    with pytest.raises(ValueError) as error:
        act()
    assert line in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("keys", "sizes"),
    [
        ({}, {"train": 12, "test": 3}),
        ({"val_file": "lives/val.csv"}, {"train": 12, "test": 3, "val": 3}),
        ({"fraction": 0.25}, {"train": 9, "test": 3, "val": 3}),
        ({"train_file": "lives/train.jsonl"}, {"train": 12, "test": 3}),
        ({"train_file": "lives/train.tsv"}, {"train": 12, "test": 3}),
    ],
)
def test_rows_become_texts_with_their_classes(root, keys, sizes):
    (root / "lives/train.jsonl").write_text(lines(ROWS * 4))
    (root / "lives/train.tsv").write_text(csv(ROWS * 4, "\t"))
    task = make(root, **keys)
    assert task.config.class_names == ["move", "play"] and task.name == "lives"
    assert task.has_validation == ("val" in sizes)
    task.setup()
    assert {name: len(part) for name, part in task.parts.items()} == sizes
    batch = next(task.train_batches(0, 9))
    ids_BL, mask_BL = batch.inputs.values()
    special = task.tokenizer.special
    assert ids_BL.shape == (9, 8) and torch.equal(mask_BL == 0, ids_BL == special["pad"])
    assert (ids_BL[:, 0] == special["cls"]).all() and ((ids_BL == special["sep"]).sum(1) == 1).all()
    # The text of nine words is cut, and the one without any is there.
    assert sorted(set(mask_BL.sum(1).tolist())) == [2, 7, 8]
    assert set(batch.targets[mask_BL.sum(1) == 8].tolist()) == {0}
    assert "of them truncated to 8 tokens" in task.inspect()["train"]
    assert f"move {sizes['train'] // 3}" in task.inspect()["train"]


def test_a_text_may_be_long(root):
    (root / "lives/train.csv").write_text(csv([("word " * 40_000, "move"), ("b", "play")]))
    task = make(root)
    task.setup()
    assert task.parts["train"].length_N.max() > 40_000


@pytest.mark.parametrize(
    ("file", "content", "keys", "line"),
    [
        ("test.csv", None, {}, "there (docs/data.md), or set data.source=synthetic"),
        ("train.csv", None, {}, "put lives/train.csv there (docs/data.md), or set"),
        ("train.csv", "text,label\n", {}, "train.csv, row 1: it has no rows"),
        ("train.csv", csv([("a", "one")]), {}, "has only the label 'one'"),
        ("train.csv", csv(ROWS), {"label": "stars"}, "row 1: it needs the columns text and stars"),
        ("train.csv", "text,label,text\na,b,c\n", {}, "two columns are called text or label"),
        ("train.csv", "text,label\na\n", {}, "row 1: the text or the label is missing"),
        ("train.csv", "text,label\na, b,c\n", {}, "row 1: it needs the columns text and label"),
        ("train.csv", 'text,label\n"a"b,c\n', {}, "train.csv, row 1: "),
        ("train.csv", b"text,label\n\xff,a\n", {}, "codec can't decode"),
        ("test.csv", csv([("a", "sing")]), {}, "test.csv: the label 'sing' is not one of the 2"),
        ("x.jsonl", "[1]\n", {}, "x.jsonl, row 1: it needs the columns text and label"),
        ("x.jsonl", lines([("a", 0.5)]), {}, "row 1: the text or the label is missing"),
        ("x.csv", "", {"tokenizer": "no/where/at/all"}, "is not a folder, and it cannot be had"),
        ("x.csv", "", {"val_file": "lives/val.csv", "fraction": 0.1}, "set one of the two to null"),
    ],
)
def test_bad_input_is_one_line(root, file, content, keys, line):
    path = root / "lives" / file
    if file == "x.jsonl":
        keys = {"train_file": "lives/x.jsonl"}
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(lambda: make(root, **keys).setup(), line)


@pytest.mark.slow
def test_a_run_keeps_its_classes_and_is_evaluated_without_the_training_file(
    root, monkeypatch, capsys
):
    monkeypatch.chdir(root)
    overrides = ["+exp=text_classification", "task.train_file=lives/train.csv", "data.root=."]
    overrides += ["task.test_file=lives/test.csv", "task.tokenizer=tokenizer", "task.max_length=16"]
    overrides += [*(f"model.{key}={value}" for key, value in SMALL.items()), "model.vocab_size=600"]
    overrides += ["epochs=1", "batch_size=2", "data.val_fraction=0.25", "budget=0.5"]
    overrides += ["wandb.mode=disabled", "trainer.device=cpu"]
    assert train.main(overrides) == 0
    (folder,) = (root / "runs/text_classification").iterdir()
    result = results.read(folder)
    assert result.config["task"]["class_names"] == ["move", "play"]
    assert result.dataset.name == "lives" and result.metrics is not None
    assert evaluate.main([f"run={folder}"]) == 0
    (root / "lives/test.csv").write_text(csv([("Ada sang.", "sing")]))
    assert evaluate.main([f"run={folder}"]) == 2
    assert "'sing' is not one of the 2 that were trained on (move, play)" in capsys.readouterr().err
    for name in ("train", "test"):
        (root / f"lives/{name}.csv").unlink()
    assert export.main([f"run={folder}"]) == 0


# --- encoders of transformers


def save(folder, kind, labels=3, **keys):
    """Save a tiny encoder that classifies texts as transformers does; return it."""
    import transformers as library

    torch.manual_seed(0)
    config = library.AutoConfig.for_model(kind, num_labels=labels, **keys)
    model = library.AutoModelForSequenceClassification.from_config(config)
    model.save_pretrained(folder)
    return model


SIZES = {"vocab_size": 600, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
SIZES |= {"intermediate_size": 16, "max_position_embeddings": 20}
ENCODERS = {
    "bert": SIZES,
    "roberta": SIZES,
    "distilbert": {
        "vocab_size": 600, "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16,
        "max_position_embeddings": 20,
    },
    "modernbert": {**SIZES, "pad_token_id": 0},
}  # fmt: skip


@pytest.mark.parametrize("kind", ENCODERS)
def test_any_encoder_of_transformers_classifies_texts(kind, root, tmp_path):
    theirs = save(tmp_path / "net", kind, **ENCODERS[kind])
    task = make(root, max_length=16)
    task.setup()
    torch.manual_seed(1)
    config = transformers.Config(name=str(tmp_path / "net"), pretrained=True)
    network = build(config, task.spec)
    inner, state = f"{theirs.base_model_prefix}.", network.state_dict()
    own = {name: value for name, value in theirs.state_dict().items() if name.startswith(inner)}
    assert len(own) > 5 and all(torch.equal(value, state[name]) for name, value in own.items())
    loss, _ = task.loss(network, next(task.train_batches(0, 4)))
    loss.backward()
    assert loss.isfinite() and 0 <= task.evaluate(network, "test")["accuracy"] <= 100
    again = build(config, task.spec, transformers.architecture(network))
    assert {n: v.shape for n, v in again.state_dict().items()} == {
        n: v.shape for n, v in state.items()
    }


def test_an_unsuitable_encoder_is_one_line(root, tmp_path):
    task, folder = make(root, max_length=18), tmp_path / "net"
    save(folder, "roberta", **{**SIZES, "max_position_embeddings": 19})

    def built(**keys):
        return build(transformers.Config(**{"name": str(folder)} | keys), task.spec)

    refused(built, "model.name=")
    refused(built, "takes 17 tokens: set task.max_length")
    refused(lambda: built(name="no/such/./one"), "is not a folder, and it cannot be had")
    refused(lambda: built(name=" "), "model.name must not be empty")
    refused(
        lambda: build(transformers.Config(), InputSpec((8,), 2, "span")),
        "where in a text an answer",
    )
    (folder / "model.safetensors").unlink()
    refused(lambda: built(pretrained=True), "holds no model.safetensors")
    for kind in (
        {"model_type": "vit"},
        {"auto_map": {"AutoConfig": "code.C"}, "model_type": "own"},
    ):
        (folder / "config.json").write_text(json.dumps(kind))
        refused(built, "choose another text classification network")


@pytest.mark.parametrize("arch", ["bert", "albert"])
def test_bert_and_albert_take_a_checkpoint_of_other_classes(arch, root, tmp_path):
    keys = {**SIZES, "max_position_embeddings": 64}
    keys |= {"embedding_size": 8} if arch == "albert" else {}
    theirs = save(tmp_path / "net", arch, labels=5, **keys)
    task = make(root)
    size = {"arch": arch, "vocab_size": 600, "embedding": 8 if arch == "albert" else None}
    network = build(bert.Config(**SMALL, **size, pretrained=str(tmp_path / "net")), task.spec)
    assert network.classifier.out_features == 2
    taken = theirs.base_model.state_dict()
    assert all(torch.equal(v, taken[n]) for n, v in network.base_model.state_dict().items())
