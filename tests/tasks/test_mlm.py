"""Masking and swapping depend on seed, epoch and sample alone; metrics are exact."""

import hashlib

import helpers
import pytest
import torch
from torch.nn import functional as F

from npas import sharing, tasks
from npas.models import bert, build
from npas.reporting.compose import compose
from npas.tasks import mlm
from npas.tasks.common import synthetic_text, tokenization

LENGTH = 24


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("text")
    synthetic_text.write_texts(root, 30)
    synthetic_text.write_tokenizer(root)
    return root


@pytest.fixture(scope="module")
def make(root):
    def made(seed=0, **keys):
        keys = {"max_length": LENGTH, "held_out": 0.2, "tokenizer": str(root / "tokenizer"), **keys}
        return helpers.make("mlm", root, seed, **keys)

    return made


def network(task, arch="bert", vocab_size=600):
    torch.manual_seed(0)
    config = bert.Config(
        arch=arch, layers=1, hidden=16, heads=2, intermediate=16, vocab_size=vocab_size,
        positions=64, embedding=8 if arch == "albert" else None,
    )  # fmt: skip
    return build(config, task.spec)


def test_reads_documents_of_all_files(tmp_path):
    (tmp_path / "b.txt").write_text("fünf\n\n\n \nsechs\n", encoding="utf-8")
    (tmp_path / "a.txt").write_text("\n one \ntwo\n\nthree\nfour", encoding="utf-8")
    (tmp_path / "c.md").write_text("no text")
    (tmp_path / "d.txt").write_bytes(b"\x0cseven\x0b eight\r\n\x0c\rnine\r\n")
    lines = ["one", "two", "three", "four", "fünf", "sechs", "seven", "eight", "nine"]
    expected = list(zip([0, 0, 1, 1, 2, 3, 4, 4, 5], lines, strict=True))
    assert list(mlm.read_lines(tmp_path)) == expected


def test_what_is_no_text_is_one_line(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"^.*cannot be read .*: convert it to UTF-8.*$"):
        list(mlm.read_lines(tmp_path))


def test_pieces_are_what_they_always_were(root):
    tokenizer = tokenization.load_tokenizer(str(root / "tokenizer"))
    pieces = mlm.cut(mlm.read_lines(root / "text"), tokenizer, 21)
    stored = b"".join(array.astype("<i4").tobytes() for array in pieces)
    assert hashlib.sha256(stored).hexdigest()[:16] == "973299b93e8b13b2"
    assert sorted(tokenization.held_out(40, 0.1, "text held out")) == [2, 23, 30, 35]


def test_some_documents_are_held_out_by_no_seed(make):
    one, other = make(), make(seed=1)
    assert torch.equal(one.parts["test"].ids_NR, other.parts["test"].ids_NR)
    lines = one.inspect()
    assert lines["train"].startswith("24 documents") and lines["test"].startswith("6 documents")
    assert [len(tokenization.held_out(n, 0.05, "x")) for n in (1000, 5)] == [50, 1]
    alone = one.evaluate(network(one), "test")
    assert set(alone) == {"mlm_accuracy", "sop_accuracy", "perplexity", "loss"}
    assert alone == other.evaluate(network(other), "test") and 400 < alone["perplexity"] < 900


def shown(task, epoch=0):
    """Yield of each sample its ids as shown, as they were, types, length, and what is asked."""
    for batch in task.train_batches(epoch, 1):
        given, asked = batch.inputs, batch.targets
        real = asked["words"][0] != mlm.NOT_HIDDEN
        restored = given["input_ids"][0].clone()
        restored[asked["places"][0][real]] = asked["words"][0][real]
        length = int(given["attention_mask"].sum())
        yield given["input_ids"][0], restored, given["token_type_ids"][0], length, asked


def test_what_was_hidden_put_back_is_the_text_in_either_order(make):
    task = make()
    train = task.parts["train"]
    pieces = {}
    for ids, first, n in zip(train.ids_NR, train.first_N, train.length_N, strict=True):
        row = ids[:n].tolist()
        pieces[(tuple(row[:first]), tuple(row[first:]))] = 0
        pieces[(tuple(row[first:]), tuple(row[:first]))] = 1
    cls, sep, pad = (task.tokenizer.special[kind] for kind in ("cls", "sep", "pad"))
    swapped = []
    for _, restored, types, length, asked in shown(task):
        row = restored.tolist()
        assert row[0] == cls and row[length - 1] == sep and set(row[length:]) <= {pad}
        middle = row.index(sep)
        parts = tuple(row[1:middle]), tuple(row[middle + 1 : length - 1])
        assert pieces[parts] == int(asked["swapped"])
        assert types.tolist() == [int(middle < i < length) for i in range(LENGTH)]
        swapped.append(int(asked["swapped"]))
    assert 0.35 < sum(swapped) / len(swapped) < 0.65


@pytest.mark.slow
def test_fifteen_in_a_hundred_words_are_hidden_eight_in_ten_as_mask(make):
    task = make()
    mask = task.tokenizer.special["mask"]
    counts = {"mask": 0, "kept": 0, "other": 0}
    places = set()
    for epoch in range(4):
        for ids, restored, _, length, asked in shown(task, epoch):
            real = asked["words"][0] != mlm.NOT_HIDDEN
            hidden = asked["places"][0][real].tolist()
            assert len(hidden) == len(set(hidden)) == max(1, round((length - 3) * 0.15))
            assert all(0 < place < length - 1 for place in hidden)
            assert not {int(restored[place]) for place in hidden} & {
                task.tokenizer.special[kind] for kind in ("cls", "sep", "pad")
            }
            untouched = [i for i in range(LENGTH) if i not in hidden]
            assert torch.equal(ids[untouched], restored[untouched])
            for place in hidden:
                now, was = int(ids[place]), int(restored[place])
                counts["mask" if now == mask else "kept" if now == was else "other"] += 1
                places.add(place)
    total = sum(counts.values())
    assert total > 500 and len(places) >= LENGTH - 4
    assert counts["mask"] / total == pytest.approx(0.8, abs=0.04)
    assert counts["kept"] / total == pytest.approx(0.1, abs=0.03)


@pytest.mark.parametrize("arch", ["bert", "albert"])
def test_the_loss_is_that_of_words_and_of_orders(arch, make):
    task = make()
    model, batch = network(task, arch).eval(), next(task.train_batches(0, 8))
    head = (model.cls if arch == "bert" else model).predictions.decoder
    seen = []
    hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[:-1]))
    loss, sums = task.loss(model, batch)
    hook.remove()
    assert seen == [batch.targets["places"].shape]  # and no other place
    out = model(**batch.inputs)
    order = out.seq_relationship_logits if arch == "bert" else out.sop_logits
    expected, right = [], []
    for b in range(8):
        words = []
        for place, word in zip(batch.targets["places"][b], batch.targets["words"][b], strict=True):
            if word != mlm.NOT_HIDDEN:
                words.append(F.cross_entropy(out.prediction_logits[b, place], word))
                right.append(float(out.prediction_logits[b, place].argmax() == word))
        swapped = F.cross_entropy(order[b], batch.targets["swapped"][b])
        expected.append(torch.stack(words).mean() + swapped)
    assert loss.item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-5)
    sop = 100 * (order.argmax(1) == batch.targets["swapped"]).sum()
    assert sums["sop_accuracy"] == sop
    halves = [task.loss(model, part)[0].item() for part in batch.parts(2)]
    assert sum(halves) / 2 == pytest.approx(loss.item(), rel=1e-5)


def test_too_little_text_is_refused(root, tmp_path):
    (tmp_path / "text").mkdir()
    for text in (" \n", "born in oslo\n"):
        (tmp_path / "text" / "one.txt").write_text(text)
        with pytest.raises(ValueError, match="leaves no text for the train part"):
            helpers.make("mlm", tmp_path, tokenizer=str(root / "tokenizer"))


# --- pre-training and fine-tuning networks share alike, so that banks can be taken over


EXACT = 18_000_000


def plan(*words):
    config = compose(*words)
    task = tasks.family(config.task.family).Task(
        config.task, config.data, seed=0, device=torch.device("cpu")
    )
    with torch.device("meta"):
        network = build(config.model, task.spec)
    return sharing.plan(network, config.budget, exclude=config.sharing.exclude)


@pytest.mark.parametrize("version", [1, 2])
def test_ssn_has_18_million_parameters_in_all(version):
    found = plan(f"+exp=ssn_squad{version}")
    assert found.budget.used == found.budget.allowed == EXACT
    assert found.budget.dense == 334_094_338
    names = {layer.name for layer in found.layers}
    assert "bert.embeddings.word_embeddings.weight" in names
    assert not any(name.startswith("qa_outputs") for name in names)


@pytest.mark.parametrize(
    ("pretraining", "answering"),
    [("ssn_mlm", "ssn_squad2"), ("ssn_mlm", "ssn_squad1"), ("tiny_mlm", "tiny_squad")],
)
def test_pre_training_shares_as_answering_does(pretraining, answering):
    one, other = plan(f"+exp={pretraining}"), plan(f"+exp={answering}")
    assert one.groups == other.groups
    assert one.scheme == other.scheme
    assert one.budget.used == one.budget.allowed and other.budget.used == other.budget.allowed
