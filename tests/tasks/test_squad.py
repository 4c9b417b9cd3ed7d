"""SQuAD is read as published, trained on in any company alike, and measured to the bit."""

import json
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from simulated_ranks import by_ranks
from torch import Tensor

from npas.config import DataConfig
from npas.config.schema import SyntheticConfig
from npas.models import bert, build
from npas.tasks import base
from npas.tasks.common import synthetic_text
from npas.tasks.squad import metrics as metric_module
from npas.tasks.squad import task as squad

CPU = torch.device("cpu")
LENGTHS = {"max_length": 48, "stride": 16, "max_query": 12}


def write(root: Path, version: str, train: int = 40, test: int = 20) -> str:
    """Write a tiny set and its tokenizer as they would lie on disk; return the tokenizer."""
    synthetic_text.write_squad(root, version, train, test)
    return str(synthetic_text.write_tokenizer(root))


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Return a maker of tasks, ready for use, on true files."""
    roots = {version: tmp_path_factory.mktemp("squad") for version in ("1.1", "2.0")}
    tokenizers = {version: write(root, version) for version, root in roots.items()}

    def made(version: str = "2.0", val_fraction: Any = None, seed: int = 0, **keys: Any) -> Any:
        config = squad.Config(version=version, tokenizer=tokenizers[version], **{**LENGTHS, **keys})
        data = DataConfig(
            root=str(roots[version]), val_fraction=val_fraction, download=False, verify="warn"
        )
        task = squad.Task(config, data, seed=seed, device=CPU)
        task.setup()
        return task

    return made


def network(task: Any, vocab_size: int = 600) -> Any:
    torch.manual_seed(0)
    config = bert.Config(
        layers=1, hidden=16, heads=2, intermediate=16, vocab_size=vocab_size, positions=64
    )
    return build(config, task.spec)


@pytest.mark.parametrize("version", ["1.1", "2.0"])
def test_reads_a_set_whole(version: str, make: Callable[..., Any]) -> None:
    task = make(version)
    assert task.name == f"squad{version}" and task.source == "real"
    assert task.spec.input_shape == (48,) and task.spec.outputs == "span"
    assert {name: len(part.questions) for name, part in task.parts.items()} == {
        "train": 40,
        "test": 20,
    }
    assert not task.has_validation
    windows = [part.features.question_N for part in task.parts.values()]
    assert all(len(w) > len(set(w.tolist())) for w in windows)  # several of some
    found = [bool(question.answers) for question in task.parts["train"].questions]
    assert all(found) == (version == "1.1")
    tensors = [task.parts["train"].ids_NL, task.parts["train"].start_N]
    assert all(tensor.dtype == torch.int32 for tensor in tensors)


def test_val_fraction_holds_out_whole_articles_by_no_seed(make: Callable[..., Any]) -> None:
    task, other = make(val_fraction=0.1), make(val_fraction=0.1, seed=1)
    assert task.has_validation
    held, kept = ({q.article for q in task.parts[name].questions} for name in ("val", "train"))
    assert held and not held & kept and len(held | kept) == 4
    assert [q.id for q in task.parts["val"].questions] == [
        q.id for q in other.parts["val"].questions
    ]
    assert (
        squad.held_out(442, 0.1) == squad.held_out(442, 0.1) and len(squad.held_out(442, 0.1)) == 44
    )
    with pytest.raises(ValueError, match="only one: set it to 0"):
        squad.held_out(1, 0.1)


def rows(task: Any, **how: Any) -> list[Tensor]:
    """Return what each sample of an epoch is, in order of its batches."""
    found = []
    for batch in task.train_batches(how.pop("epoch", 0), how.pop("size", 12), **how):
        values = [*batch.inputs.values(), *batch.targets.values()]
        found += list(torch.cat([v.reshape(batch.size, -1).long() for v in values], 1))
    return found


def test_a_sample_is_the_same_in_any_batch_on_any_rank(make: Callable[..., Any]) -> None:
    task = make()
    whole = rows(task, size=12)
    small = rows(task, size=6)
    assert all(torch.equal(a, b) for a, b in zip(whole, small, strict=False))
    ranks = [rows(task, size=12, rank=rank, world=3) for rank in range(3)]
    for step in range(len(whole) // 12):
        again = [row for rank in ranks for row in rank[4 * step : 4 * step + 4]]
        assert torch.equal(torch.stack(again), torch.stack(whole[12 * step : 12 * step + 12]))
    assert torch.equal(rows(task, steps=range(1, 2))[0], whole[12])
    assert not torch.equal(rows(task, epoch=1)[0], whole[0])
    assert not torch.equal(rows(make(seed=1))[0], whole[0])


def test_a_batch_is_what_a_network_reads(make: Callable[..., Any]) -> None:
    task = make()
    batch = next(task.train_batches(0, 8))
    like = task.spec.example("cpu")
    assert {k: (v.dtype, v.shape[1:]) for k, v in batch.inputs.items()} == {
        k: (v.dtype, v.shape[1:]) for k, v in like.items()
    }
    ids, types = batch.inputs["input_ids"], batch.inputs["token_type_ids"]
    mask = batch.inputs["attention_mask"][:, 0, 0]
    sep = task.tokenizer.special("sep")
    assert torch.equal(mask, ids != task.tokenizer.special("pad"))
    for row, kind, shown in zip(ids, types, mask, strict=True):
        first, last = (row == sep).nonzero().flatten().tolist()
        assert kind.tolist() == [int(first < i <= last) for i in range(48)]
        assert int(shown.sum()) == last + 1
    for start, end in zip(*batch.targets.values(), strict=True):
        assert 0 <= start <= end < 48


def test_the_loss_is_the_mean_over_starts_and_ends(make: Callable[..., Any]) -> None:
    task = make()
    model, batch = network(task).eval(), next(task.train_batches(0, 8))
    loss, sums = task.loss(model, batch)
    out = model(
        **batch.inputs,
        start_positions=batch.targets["start"],
        end_positions=batch.targets["end"],
    )
    assert loss.item() == pytest.approx(out.loss.item())
    both = (out.start_logits.argmax(1) == batch.targets["start"]) & (
        out.end_logits.argmax(1) == batch.targets["end"]
    )
    assert sums["exact"] == 100 * both.sum()


@pytest.mark.parametrize("version", ["1.1", "2.0"])
def test_an_oracle_scores_a_hundred(version: str, make: Callable[..., Any]) -> None:
    """A network that points where the answer is answers every question right."""
    task = make(version, val_fraction=0.1)
    part = task.parts["val"]

    class Oracle(torch.nn.Module):
        def forward(self, input_ids: Tensor, **_: Tensor) -> Any:
            at = [int((part.ids_NL == row).all(1).nonzero()[0]) for row in input_ids.int()]
            eye = torch.eye(48)
            found = {"start_logits": eye[part.start_N[at]], "end_logits": eye[part.end_N[at]]}
            return type("Out", (), found)

    metrics = task.evaluate(Oracle(), "val")
    assert metrics["f1"] == metrics["em"] == 100
    names = {"best_f1", "best_em", "threshold", "has_answer_f1", "no_answer_f1"}
    assert set(metrics) - {"f1", "em"} == (names if version == "2.0" else set())


def test_any_number_of_ranks_measures_the_same_to_the_bit(
    make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(squad, "EVAL_BATCH", 7)
    task = make()
    model = network(task)
    alone = task.evaluate(model, "test")
    assert model.training and alone["f1"] > 0
    for world in (1, 2, 3, 50):
        found = by_ranks(
            task, model, "test", world, lambda f: monkeypatch.setattr(squad, "over_ranks", f)
        )
        assert found == [alone] * world


def test_a_tokenizer_with_more_words_than_the_network_is_one_line(make: Callable[..., Any]) -> None:
    task = make()
    model = network(task, vocab_size=100)
    with pytest.raises(ValueError, match=r"words, and the network knows model\.vocab_size=100"):
        task.evaluate(model, "test")
    with pytest.raises(ValueError, match=r"model\.vocab_size=100"):
        task.loss(model, next(task.train_batches(0, 4)))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"version": "3"}, "SQuAD comes as 1.1 and as 2.0"),
        ({"max_length": 60}, "leaves no room for a paragraph"),
        ({"stride": 318}, "at least 317 tokens"),
        ({"n_best": 0}, r"task\.n_best"),
        ({"max_answer": 0}, r"task\.max_answer"),
    ],
)
def test_what_cannot_be_is_refused(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        squad.Config(**keys)
    assert squad.Config(stride=317).stride == 317


def fresh(root: Path, version: str = "2.0", tokenizer: str = "absent", **data: Any) -> squad.Task:
    config = squad.Config(version=version, tokenizer=tokenizer, **LENGTHS)
    settings = DataConfig(root=str(root), **{"download": False, **data})
    return squad.Task(config, settings, seed=0, device=CPU)


def test_a_missing_set_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"put train-v2\.0\.json and dev-v2\.0\.json there") as e:
        fresh(tmp_path / "x").setup()
    assert "data.download=true" in str(e.value) and "\n" not in str(e.value)
    assert not (tmp_path / "x").exists()


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Publish a tiny set, with its sums, at an address of the test's own."""
    site = tmp_path / "site"
    site.mkdir()
    write(site, "2.0")
    sums = {path.name: sha256(path.read_bytes()).hexdigest() for path in site.glob("*.json")}
    monkeypatch.setattr(squad, "URL", site.as_uri() + "/")
    monkeypatch.setattr(squad, "SHA256", sums)
    yield site


def test_downloads_and_verifies(published: Path, tmp_path: Path) -> None:
    task = fresh(tmp_path / "new", tokenizer=str(published / "tokenizer"), download=True)
    task.setup()
    assert {path.name for path in (tmp_path / "new").iterdir()} == set(squad.SHA256)
    lines = task.inspect()
    assert lines["train-v2.0.json"].endswith("as published")
    assert lines["test"].startswith("20 questions (")
    assert "on 6 paragraphs of 2 articles" in lines["test"]
    assert lines["tokenizer"].endswith("words")


def test_another_file_than_the_published_is_not_taken(published: Path, tmp_path: Path) -> None:
    squad.SHA256["dev-v2.0.json"] = "0" * 64
    with pytest.raises(ValueError, match="is not the published file") as error:
        fresh(tmp_path / "new", download=True).setup()
    assert "\n" not in str(error.value)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["train-v2.0.json"]


def test_another_file_put_there_is_refused_or_read_with_a_warning(
    published: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = published / "dev-v2.0.json"
    again = json.dumps(json.loads(path.read_text()), indent=1)
    path.write_text(again, encoding="utf-8-sig")  # as some editors do
    tokenizer = str(published / "tokenizer")
    with pytest.raises(ValueError, match=r"dev-v2\.0\.json is not as published .*verify=warn"):
        fresh(published, tokenizer=tokenizer).setup()
    task = fresh(published, tokenizer=tokenizer, verify="warn")
    task.setup()
    assert "dev-v2.0.json is not as published" in caplog.text
    assert "train-v2.0.json" not in caplog.text
    lines = task.inspect()
    assert "not the published" in lines["dev-v2.0.json"] and "questions" in lines["test"]
    assert lines["train-v2.0.json"].endswith("as published")
    assert task.compared.published is False


def test_answers_that_are_not_there_are_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = write(tmp_path, "1.1")
    path = tmp_path / "train-v1.1.json"
    raw = json.loads(path.read_text())
    raw["data"][0]["paragraphs"][0]["qas"][0]["answers"][0]["text"] = "elsewhere"
    path.write_text(json.dumps(raw))
    task = fresh(tmp_path, "1.1", tokenizer, verify="warn")
    task.setup()
    assert "1 of 40 training questions are left out" in caplog.text
    assert task.parts["train"].features.left_out == 1


def test_a_tokenizer_that_cannot_be_had_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked = []

    def fetch(*_: Any, local_files_only: bool, **__: Any) -> str:
        asked.append(local_files_only)
        raise FileNotFoundError("no network")

    write(tmp_path, "2.0")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    for download, said in (
        (True, "give the folder as task"),
        (False, r"data\.download=false: put"),
    ):
        with pytest.raises(ValueError, match=said) as error:
            fresh(tmp_path, download=download).setup()
        assert "task.tokenizer=FOLDER" in str(error.value) and "\n" not in str(error.value)
    assert asked == [True, False, True]  # the cache, the hub; the cache alone
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read") as error:
        fresh(tmp_path, tokenizer=str(tmp_path / "tokenizer")).setup()
    assert "\n" not in str(error.value)


def test_a_tokenizer_without_a_word_for_the_unknown_is_one_line(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    tokenizer = Path(write(tmp_path, "2.0"))
    words = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "the"]
    bare = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    bare.save(str(tokenizer / "tokenizer.json"))
    with pytest.raises(ValueError, match="cannot") as error:
        fresh(tmp_path, tokenizer=str(tokenizer), verify="warn").setup()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("version", ["1.1", "2.0"])
@pytest.mark.parametrize("split", [None, 0.1])
def test_a_rehearsal_reads_made_up_files(
    version: str, split: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def made() -> Any:
        data = DataConfig(
            source="synthetic",
            val_fraction=split,
            synthetic=SyntheticConfig(train=13, test=5),
            download=False,
        )
        task = squad.Task(squad.Config(version=version), data, seed=0, device=CPU)
        task.setup()
        return task

    task = made()
    assert not list(tmp_path.iterdir())
    assert task.spec.input_shape == (64,)
    counts = {name: len(part.questions) for name, part in task.parts.items()}
    assert counts["test"] == 5 and counts["train"] + counts.get("val", 0) == 13
    assert set(counts) == {"train", "test", *(["val"] if split else [])}
    one, other = (next(base.batches(t, 0, 4)) for t in (task, made()))
    assert torch.equal(one.inputs["input_ids"], other.inputs["input_ids"])
    assert "synthetic" in task.inspect()[f"dev-v{version}.json"]
    assert all(
        len(answer) for question in task.parts["test"].questions for answer in question.answers
    )


@pytest.mark.parametrize("version", ["1.1", "2.0"])
def test_answers_are_written_as_the_official_scripts_read_them(
    version: str, make: Callable[..., Any], tmp_path: Path
) -> None:
    task = make(version, val_fraction=0.1)
    metrics = {split: task.evaluate(network(task), split) for split in ("val", "test")}
    for split, ending in (("val", "-val"), ("test", "")):
        paths = task.write_predictions(split, tmp_path)
        found = {path.name: json.loads(path.read_text()) for path in paths}
        questions = {question.id: question.answers for question in task.parts[split].questions}
        assert all(set(content) == set(questions) for content in found.values())
        names = ["predictions"] if version == "1.1" else ["predictions", "null_odds", "answers"]
        assert list(found) == [f"{name}{ending}.json" for name in names]

        def mean_f1(texts: dict[str, str], true: dict[str, Any] = questions) -> float:
            scores = [metric_module.score(texts[key], true[key], version)[1] for key in true]
            return 100 * sum(scores) / len(scores)

        predictions = found[f"predictions{ending}.json"]
        assert mean_f1(predictions) == pytest.approx(metrics[split]["f1"])
        if version == "2.0":
            odds, answers = found[f"null_odds{ending}.json"], found[f"answers{ending}.json"]
            best = max(
                mean_f1({key: text if odds[key] <= t else "" for key, text in answers.items()})
                for t in (*odds.values(), -1e9)
            )
            assert best == pytest.approx(metrics[split]["best_f1"])
            assert predictions == {key: t if odds[key] <= 0 else "" for key, t in answers.items()}
