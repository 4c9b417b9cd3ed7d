"""BERT and ALBERT start from a checkpoint or a seed."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from npas.models import InputSpec, _hub, bert, build

SPAN, PRETRAINING = (InputSpec((16,), 2, answers) for answers in ("span", "pretraining"))
TINY = {
    "layers": 2, "hidden": 16, "heads": 2, "intermediate": 32, "vocab_size": 50, "positions": 16,
}  # fmt: skip


def config(arch="bert", **changes):
    width = {"embedding": 8} if arch == "albert" else {}
    return bert.Config(arch=arch, **{**TINY, **width, **changes})


@pytest.mark.parametrize("spec", [SPAN, PRETRAINING], ids=lambda spec: spec.outputs)
@pytest.mark.parametrize("arch", ["bert", "albert"])
def test_a_seed_means_the_same_weights_and_all_are_used(arch, spec):
    torch.manual_seed(3)
    one = build(config(arch), spec)
    torch.manual_seed(3)
    other = build(config(arch), spec)
    for (name, parameter), same in zip(one.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(parameter, same), name
    out = one(**spec.example("cpu"))
    logits = [value for name, value in out.items() if "logits" in name]
    assert len(logits) == 2
    sum(value.float().square().sum() for value in logits).backward()
    assert all(parameter.grad is not None for parameter in one.parameters())
    (first, *_) = other.to("meta")(**spec.example("meta")).to_tuple()  # looks at no value
    assert first.shape[:2] == (1, 16)


def save(folder, arch="bert", **changes):
    """Store a pre-trained network as the hub has them."""
    torch.manual_seed(7)
    network = build(config(arch, **changes), PRETRAINING)
    network.save_pretrained(folder)
    return network


@pytest.mark.parametrize("arch", ["bert", "albert"])
def test_a_checkpoint_gives_all_but_the_head(arch, tmp_path):
    stored = save(tmp_path, arch).state_dict()
    starts = []
    for _ in range(2):
        torch.manual_seed(1)
        starts.append(build(config(arch, pretrained=str(tmp_path)), SPAN))
    assert starts[0].training
    for name, parameter in starts[0].named_parameters():
        assert torch.equal(parameter, starts[1].get_parameter(name)), name
        if not name.startswith("qa_outputs"):
            assert torch.equal(parameter, stored[name]), name
    full = build(config(arch, pretrained=str(tmp_path)), PRETRAINING).state_dict()
    assert full.keys() == stored.keys()
    assert all(torch.equal(full[name], stored[name]) for name in stored)


def test_a_checkpoint_in_several_files_keeps_its_activation_and_gets_our_dropout(tmp_path):
    stored = save(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    stored.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "hidden_act": "relu"}))
    network = build(config(pretrained=str(tmp_path), dropout=0.25), PRETRAINING)
    assert all(torch.equal(a, network.state_dict()[k]) for k, a in stored.state_dict().items())
    assert network.config.hidden_act == "relu"
    assert network.bert.embeddings.dropout.p == 0.25


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": 3}, "has layers 2, and model.layers=3"),
        ({"arch": "albert", "embedding": 8}, "has arch bert, and model.arch=albert"),
    ],
)
def test_a_checkpoint_of_another_shape_is_refused(changes, message, tmp_path):
    save(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        build(bert.Config(**{**TINY, **changes, "pretrained": str(tmp_path)}), SPAN)
    assert "\n" not in str(error.value)


def test_a_checkpoint_without_its_layers_or_its_bytes_is_refused(tmp_path):
    file = tmp_path / "model.safetensors"

    def refused(message):
        with pytest.raises(ValueError, match=message) as error:
            build(config(pretrained=str(tmp_path)), SPAN)
        assert "\n" not in str(error.value)

    refused(r"holds no model\.safetensors")
    save(tmp_path)
    kept = {name: value for name, value in load_file(file).items() if ".layer.1." not in name}
    save_file(kept, file, {"format": "pt"})
    refused(r"lacks bert\.encoder\.layer\.1\..* those of another network")
    file.write_bytes(b"nothing")
    refused("cannot be read")


# --- the hub


class Hub:
    """Stand in for the hub's client: files that it has, in its cache or not."""

    def __init__(self):
        self.asked = []
        self.cached = None

    def fetch(self, name, *, allow_patterns, local_files_only, **how):
        self.asked.append((name, local_files_only, how))
        if self.cached is None:
            raise FileNotFoundError("Got: ConnectError\nand so on")
        return str(self.cached)


@pytest.fixture
def hub(monkeypatch):
    made = Hub()
    monkeypatch.setattr("huggingface_hub.snapshot_download", made.fetch)
    monkeypatch.setattr(_hub, "COMMITS", {})
    return made


def test_without_a_network_a_name_is_one_line(hub):
    message = r"^.*ConnectError.*model\.pretrained=FOLDER, or null for fresh weights$"
    with pytest.raises(ValueError, match=message):
        build(config(pretrained="bert-tiny"), SPAN)
    assert hub.asked == [("bert-tiny", True, {}), ("bert-tiny", False, {})]


@pytest.mark.parametrize(("name", "how"), [("a/b", {}), ("a/b@v1", {"revision": "v1"})])
def test_what_is_in_the_cache_needs_no_network_and_its_commit_is_noted(name, how, tmp_path, hub):
    hub.cached = tmp_path / "c0ffee"
    hub.cached.mkdir()
    (hub.cached / "b").write_text("")
    assert _hub.find_folder("key", name, ("a", "b"), ("b",)) == hub.cached
    assert hub.asked == [("a/b", True, how)] and {name: "a/b@c0ffee"} == _hub.COMMITS


def test_without_download_only_the_cache_is_asked(tmp_path, hub):
    for cached in (None, tmp_path):  # nothing in the cache, or a folder without what is needed
        hub.cached = cached
        with pytest.raises(ValueError, match=r"data\.download=false: put b into a folder") as error:
            _hub.find_folder("key", "name", ("a", "b"), ("b",), download=False)
        assert "key=FOLDER" in str(error.value) and "\n" not in str(error.value)
    assert all(local for _, local, _ in hub.asked)
    with pytest.raises(ValueError, match="it has no b on the Hugging Face hub"):
        _hub.find_folder("key", "name", ("a", "b"), ("b",))


def test_texts_longer_than_the_positions_and_images_are_refused():
    with pytest.raises(ValueError, match=r"17 tokens, and model\.positions=16"):
        build(config(), InputSpec((17,), 2, "span"))
