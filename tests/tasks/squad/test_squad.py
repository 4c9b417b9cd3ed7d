"""SQuAD is read as published, and answers are written as the official scripts read them."""

import json
from hashlib import sha256

import helpers
import pytest
import torch

from npas.models import bert, build
from npas.tasks.common import synthetic_text
from npas.tasks.squad import answers as metrics
from npas.tasks.squad import task as squad

LENGTHS = {"max_length": 48, "stride": 16, "max_query": 12}


def fresh(root, version="2.0", tokenizer="absent", keys=(), **data):
    keys = {"version": version, "tokenizer": str(tokenizer), **LENGTHS, **dict(keys)}
    return helpers.make("squad", root, data=data, ready=False, **keys)


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """Return a maker of tasks, ready for use, on true files."""
    root = tmp_path_factory.mktemp("squad")
    for version in ("1.1", "2.0"):
        synthetic_text.write_squad(root, version, 40, 20)
    tokenizer = synthetic_text.write_tokenizer(root)

    def made(version="2.0", val_fraction=None):
        task = fresh(root, version, tokenizer, val_fraction=val_fraction, verify="warn")
        task.setup()
        return task

    return made


def network(task):
    torch.manual_seed(0)
    sizes = {"layers": 1, "hidden": 16, "heads": 2, "intermediate": 16, "positions": 64}
    return build(bert.Config(vocab_size=600, **sizes), task.spec)


@pytest.mark.parametrize("version", ["1.1", "2.0"])
def test_a_set_is_read_whole_and_held_out_by_articles(version, make):
    task = make(version)
    assert task.name == f"squad{version}" and not task.has_validation
    counts = {name: len(part.questions) for name, part in task.parts.items()}
    assert counts == {"train": 40, "test": 20}
    found = [bool(question.answers) for question in task.parts["train"].questions]
    assert all(found) == (version == "1.1")
    task = make(version, val_fraction=0.1)
    held, kept = ({q.article for q in task.parts[name].questions} for name in ("val", "train"))
    assert task.has_validation and held and not held & kept and len(held | kept) == 4
    with pytest.raises(ValueError, match="holds out all articles: set it to 0"):
        make(version, val_fraction=0.9)


def test_a_batch_is_question_and_paragraph_and_where_the_answer_is(make):
    task = make()
    batch = next(task.train_batches(0, 8))
    ids, types = batch.inputs["input_ids"], batch.inputs["token_type_ids"]
    mask, special = batch.inputs["attention_mask"][:, 0, 0], task.tokenizer.special
    assert torch.equal(mask, ids != special["pad"])
    for row, kind, shown in zip(ids, types, mask, strict=True):
        first, last = (row == special["sep"]).nonzero().flatten().tolist()
        assert kind.tolist() == [int(first < i <= last) for i in range(48)]
        assert int(shown.sum()) == last + 1
    model = network(task).eval()
    loss, sums = task.loss(model, batch)
    places = {f"{name}_positions": value for name, value in batch.targets.items()}
    out = model(**batch.inputs, **places)
    assert loss.item() == pytest.approx(out.loss.item())
    right = out.start_logits.argmax(1) == batch.targets["start"]
    right &= out.end_logits.argmax(1) == batch.targets["end"]
    assert sums["exact"] == 100 * right.sum()


@pytest.mark.parametrize("version", ["1.1", "2.0"])
def test_an_oracle_scores_a_hundred(version, make):
    task = make(version)
    part = task.parts["test"]

    class Oracle(torch.nn.Module):
        """Point where the answer is."""

        def forward(self, input_ids, **_):
            at = [int((part.ids_NL == row).all(1).nonzero()[0]) for row in input_ids.int()]
            eye = torch.eye(48)
            found = {"start_logits": eye[part.start_N[at]], "end_logits": eye[part.end_N[at]]}
            return type("Out", (), found)

    found = task.evaluate(Oracle(), "test")
    assert found["f1"] == found["em"] == 100 and len(found) == (7 if version == "2.0" else 2)


@pytest.mark.parametrize("version", ["1.1", "2.0"])
def test_answers_are_written_as_the_official_scripts_read_them(version, make, tmp_path):
    task = make(version, val_fraction=0.1)
    for split, ending in (("val", "-val"), ("test", "")):
        measured = task.evaluate(network(task), split)
        paths = task.write_predictions(split, tmp_path)
        found = {path.name: json.loads(path.read_text()) for path in paths}
        golds = {question.id: question.answers for question in task.parts[split].questions}
        assert all(set(content) == set(golds) for content in found.values())
        names = ["predictions"] if version == "1.1" else ["predictions", "null_odds", "answers"]
        assert list(found) == [f"{name}{ending}.json" for name in names]

        def mean_f1(texts, golds=golds):
            scores = [metrics.score(texts[key], golds[key], version)[1] for key in golds]
            return 100 * sum(scores) / len(scores)

        predictions = found[f"predictions{ending}.json"]
        assert mean_f1(predictions) == pytest.approx(measured["f1"])
        if version == "2.0":
            odds, answers = found[f"null_odds{ending}.json"], found[f"answers{ending}.json"]
            best = max(
                mean_f1({key: text if odds[key] <= t else "" for key, text in answers.items()})
                for t in (*odds.values(), -1e9)
            )
            assert best == pytest.approx(measured["best_f1"])
            assert predictions == {key: t if odds[key] <= 0 else "" for key, t in answers.items()}


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Publish a tiny set, with its sums, at an address of the test's own."""
    site = tmp_path / "site"
    site.mkdir()
    synthetic_text.write_squad(site, "2.0", 40, 20)
    sums = {path.name: sha256(path.read_bytes()).hexdigest() for path in site.glob("*.json")}
    synthetic_text.write_tokenizer(site)
    monkeypatch.setattr(squad, "URL", site.as_uri() + "/")
    monkeypatch.setattr(squad, "SHA256", sums)
    return site


def test_a_missing_set_is_downloaded_and_verified(published, tmp_path):
    root = tmp_path / "new"
    with pytest.raises(ValueError, match=r"put train-v2\.0\.json and dev-v2\.0\.json there"):
        fresh(root).setup()
    task = fresh(root, tokenizer=published / "tokenizer", download=True)
    task.setup()
    assert {path.name for path in root.iterdir()} == set(squad.SHA256)
    lines = task.inspect()
    assert lines["train-v2.0.json"].endswith("as published")
    assert lines["test"].startswith("20 questions (")
    assert "on 6 paragraphs of 2 articles" in lines["test"]
    (root / "dev-v2.0.json").unlink()
    squad.SHA256["dev-v2.0.json"] = "0" * 64
    with pytest.raises(ValueError, match="is not the published file"):
        fresh(root, download=True).setup()
    assert [path.name for path in root.iterdir()] == ["train-v2.0.json"]


def own_files(root, **keys):
    """Return a task on files of one's own under `root`, which have the words of its world."""
    files = {"train_files": ["dev.json", "more.json"], "test_file": "part.json"}
    return fresh(root, "1.1", root / "tokenizer", {**files, **keys})


def test_no_paragraph_of_the_test_file_is_trained_on(tmp_path):
    """As XQuAD's are of SQuAD's dev set: whatever their spaces, dashes and ids."""
    synthetic_text.write_squad(tmp_path, "1.1", 40, 24)
    synthetic_text.write_tokenizer(tmp_path)
    (tmp_path / "train-v1.1.json").rename(tmp_path / "more.json")
    dev = json.loads((tmp_path / "dev-v1.1.json").read_text())
    (tmp_path / "dev-v1.1.json").rename(tmp_path / "dev.json")
    part = json.loads(json.dumps(dev["data"][1]))
    kept = part["paragraphs"] = part["paragraphs"][:2]
    for paragraph in kept:
        paragraph["context"] = paragraph["context"].replace(". ", ".  ")
        for question in paragraph["qas"]:
            question |= {"id": "another" + question["id"]}
    (tmp_path / "part.json").write_text(json.dumps({"data": [part]}))
    task = own_files(tmp_path)
    task.setup()
    assert task.name == "part" and task.compared.published is None
    contexts = {n: {q.context for q in p.questions} for n, p in task.parts.items()}
    own = {p["context"] for a in dev["data"] for p in a["paragraphs"]}
    assert len(own & contexts["train"]) == len(own) - 2 and len(contexts["test"]) == 2
    gone = {" ".join(text.split()) for text in contexts["test"]}
    assert len(gone) == 2 and gone <= own and not gone & contexts["train"]
    assert len(task.parts["train"].questions) == 40 + 24 - 8
    assert len({q.article for q in task.parts["train"].questions}) == 4 + 2
    lines = task.inspect()
    assert lines["train"].endswith("2 paragraphs of the test set are skipped")
    assert lines["part.json"].startswith("sha256 ")
    few = own_files(tmp_path, train_questions=9)
    few.setup()
    assert len(few.parts["train"].questions) == 9
    with pytest.raises(ValueError, match=r"put nowhere\.json there"):
        own_files(tmp_path, test_file="nowhere.json").setup()
    (tmp_path / "dev.json").write_bytes((tmp_path / "part.json").read_bytes())
    with pytest.raises(ValueError, match="none of the questions"):
        own_files(tmp_path, train_files=["dev.json"]).setup()
