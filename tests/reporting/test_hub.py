"""Shared networks go to a folder or the hub and come back, as `save_pretrained` promises."""

from typing import Any, ClassVar

import pytest
import torch
from huggingface_hub import ModelCard
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

import npas

IDS = torch.randint(2, 50, (4, 8), generator=torch.Generator().manual_seed(0))


def plain():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU())


def bert():
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=32, max_position_embeddings=20, num_labels=3,
        )
    )  # fmt: skip


def same(one, other):
    x = IDS if isinstance(one, BertForSequenceClassification) else torch.ones(2, 8)
    with torch.no_grad():
        outputs = [model.eval()(x) for model in (one, other)]
    first, second = (getattr(output, "logits", output) for output in outputs)
    return torch.equal(first, second)


@pytest.mark.parametrize("build", [plain, bert])
def test_what_save_pretrained_writes_from_pretrained_reads(build, tmp_path):
    model = npas.share(build(), 0.5)
    npas.save_pretrained(model, tmp_path / "mine")
    assert same(model, npas.from_pretrained(tmp_path / "mine", build()))
    assert same(model, npas.load(tmp_path / "mine", build()))
    card = ModelCard.load(tmp_path / "mine" / "README.md")
    assert card.data.to_dict()["library_name"] == "npas"
    used = npas.allocation(model).budget.used
    assert f"{used:,} where the dense one has" in card.text and "budget 0.5" in card.text
    (tmp_path / "mine" / "README.md").write_text("my own")
    npas.save_pretrained(model, tmp_path / "mine")
    assert (tmp_path / "mine" / "README.md").read_text() == "my own"


def test_a_network_of_transformers_needs_no_dense_one_and_is_plain_again_materialized(tmp_path):
    model = npas.share(bert(), 0.5)
    npas.save_pretrained(model, tmp_path / "a")
    again = npas.from_pretrained(tmp_path / "a")
    assert same(model, again) and npas.is_shared(again)
    npas.materialize(again).save_pretrained(tmp_path / "b")  # type: ignore[operator]
    assert same(model, BertForSequenceClassification.from_pretrained(tmp_path / "b"))


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda folder: npas.from_pretrained(folder / "none"), "is not a folder, and it cannot be"),
        (lambda folder: npas.from_pretrained(folder), "holds no allocation.json or shared/alloc"),
        (lambda folder: npas.from_pretrained(folder / "a"), "give npas.from_pretrained the dense"),
        (lambda folder: npas.from_pretrained(folder / "a", bert()), "build the architecture"),
        (lambda folder: npas.save_pretrained(plain(), folder / "b"), "not shared"),
        (lambda folder: npas.push_to_hub(plain(), "me/x"), "not shared"),
        (lambda folder: npas.push_to_hub(plain(), 3), "repo_id=3 must be a name"),
    ],
)
def test_invalid_input_is_one_line(read, message, tmp_path):
    npas.save_pretrained(npas.share(plain(), 0.5), tmp_path / "a")
    with pytest.raises(ValueError) as error:
        read(tmp_path)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "b").exists()


class Api:
    """Stand in for the hub's client: keep what is uploaded."""

    made: ClassVar[dict[str, Any]] = {}
    has_card = False
    fails = False

    def __init__(self, token):
        self.made["token"] = token

    def create_repo(self, repo_id, **how):
        if self.fails:
            raise ConnectionError("no route\nto the hub")
        self.made[repo_id] = how

    def file_exists(self, repo_id, name):
        return self.has_card

    def upload_folder(self, *, repo_id, folder_path, **how):
        self.made["files"] = {path.name: path.read_bytes() for path in folder_path.iterdir()}
        self.made["how"] = how
        return type("Commit", (), {"commit_url": f"hub/{repo_id}/commit/1"})


def test_a_push_uploads_what_save_pretrained_writes(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.setattr(Api, "made", made := {})
    model = npas.share(plain(), 0.5)
    assert npas.push_to_hub(model, "me/mine", private=True, token="t") == "hub/me/mine/commit/1"
    assert made["me/mine"] == {"private": True, "exist_ok": True} and made["token"] == "t"
    assert set(made["files"]) == {"README.md", "allocation.json", "model.safetensors"}
    assert b"# mine" in made["files"]["README.md"] and made["how"]["ignore_patterns"] == []
    for name, content in made["files"].items():
        (tmp_path / name).write_bytes(content)
    assert same(model, npas.from_pretrained(tmp_path, plain()))
    monkeypatch.setattr(Api, "has_card", True)
    npas.push_to_hub(model, "me/mine")
    assert made["how"]["ignore_patterns"] == ["README.md"]
    monkeypatch.setattr(Api, "fails", True)
    with pytest.raises(ValueError, match=r"me/mine cannot be pushed to the hub: no route$"):
        npas.push_to_hub(model, "me/mine")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_network_of_transformers_comes_back_in_its_dtype(dtype, tmp_path):
    model = npas.share(bert().to(dtype), 0.5)
    npas.save_pretrained(model, tmp_path)
    again = npas.from_pretrained(tmp_path)
    assert {p.dtype for p in again.parameters()} == {dtype} and same(model, again)
    assert torch.get_default_dtype() == torch.float32


def test_a_name_of_the_hub_is_fetched_with_its_revision(monkeypatch, tmp_path):
    model, asked = npas.share(plain(), 0.5), []
    npas.save_pretrained(model, tmp_path)

    def fetch(name, *, allow_patterns, **how):
        asked.append((name, how))
        assert {"allocation.json", "model.safetensors", "shared/allocation.json"} <= {
            *allow_patterns
        }
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert same(model, npas.from_pretrained("me/mine@v1", plain()))
    assert asked == [("me/mine", {"local_files_only": True, "revision": "v1"})]
