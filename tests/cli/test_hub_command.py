"""`npas-export format=hub` writes what the hub, npas and transformers each read."""

import shutil

import pytest
import torch
from command_line import SMALL
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import npas
from npas import models
from npas.cli import experiments, train
from npas.reporting import results
from npas.tasks.common import synthetic_text


def test_a_run_of_ones_own_network_is_read_by_load(run, trained, tmp_path, monkeypatch):
    done = run("npas-export", f"run={trained}", "format=hub", f"out={tmp_path / 'digits-half'}")
    assert done.code == 0 and "hf upload USER/digits-half " in done.out
    folder = tmp_path / "digits-half"
    assert {path.name for path in folder.iterdir()} == {
        *("README.md", "allocation.json", "config.yaml", "model.safetensors", "result.json")
    }
    result, card = results.read(trained), ModelCard.load(folder / "README.md")
    measured = {found.metric_type: found.metric_value for found in card.data.eval_results}
    assert measured == result.metrics.last and card.data.to_dict()["library_name"] == "npas"
    for text in (
        "budget 0.5",
        "Data: digits (no published",
        "data.root=data  # +exp=digits budget=0.5,",
    ):
        assert text in card.text
    experiment = experiments.restore(str(trained), {"trainer.device": "cpu"})
    again = npas.load(folder, models.build(experiment.config.model, experiment.task.spec))
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(again.eval()(x), experiment.model.eval()(x))
    # Beside what is there, and a file is no folder.
    (folder / "mine.txt").write_text("kept")
    run("npas-export", f"run={trained}", "format=hub", f"out={folder}", code=0)
    assert (folder / "mine.txt").exists()
    monkeypatch.chdir(shutil.copytree(trained, tmp_path / "here"))
    assert "USER/digits-here export/hub" in run("npas-export", "run=.", "format=hub").out
    refused = run("npas-export", f"run={trained}", "format=hub", f"out={folder / 'mine.txt'}")
    assert refused.code == 2 and "is a file: name a folder" in refused.err


def test_transformers_reads_the_dense_network_with_its_labels_and_tokenizer(run, tmp_path):
    tokenizer = synthetic_text.write_tokenizer(tmp_path)
    for name in ("train", "test"):
        rows = "text,label\n" + 'Alan moved.,move\n"Alan played.",play\n' * 4
        (tmp_path / f"{name}.csv").write_text(rows)
    overrides = ["+exp=text_classification", "task.train_file=train.csv", "task.test_file=test.csv"]
    overrides += [f"data.root={tmp_path}", f"task.tokenizer={tokenizer}", "task.max_length=8"]
    overrides += ["model.layers=1", "model.hidden=16", "model.heads=2", "model.intermediate=16"]
    overrides += ["model.vocab_size=600", "model.positions=16", "epochs=1", "batch_size=2"]
    overrides += ["data.val_fraction=null", "wandb.mode=disabled", "trainer.device=cpu"]
    assert train.main([*overrides, "budget=0.5", f"run_root={tmp_path / 'runs'}"]) == 0
    (folder,) = (tmp_path / "runs/text_classification").iterdir()
    run("npas-export", f"run={folder}", "format=hub", code=0)
    out = folder / "export" / "hub"
    dense = AutoModelForSequenceClassification.from_pretrained(out).eval()
    assert dense.config.id2label == {0: "move", 1: "play"}
    ids = AutoTokenizer.from_pretrained(out)("Alan moved.", return_tensors="pt")
    shared = npas.from_pretrained(out)
    assert npas.is_shared(shared) and npas.count_parameters(shared) <= 0.5 * dense.num_parameters()
    with torch.no_grad():
        found, expected = shared.eval()(**ids).logits, dense(**ids).logits
    assert torch.allclose(found, expected, atol=1e-6)  # read from a file, sums may differ
    assert "from_pretrained" in (out / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "message", "how"),
    [
        (
            ("budget=dense",),
            "A plain network of 20,506 parameters.",
            "model.load_state_dict(state)",
        ),
        (
            ("budget=0.5", "epochs=2", "pruning.method=magnitude"),
            "Its filters were pruned; before, it had 10,253 (budget 0.5).",
            "npas.sharing.resize(model, state)",
        ),
    ],
)
def test_what_shares_nothing_is_a_plain_network(run, trained, tmp_path, overrides, message, how):
    assert train.main([*SMALL, *overrides, f"run_root={tmp_path / 'runs'}"]) == 0
    (folder,) = (tmp_path / "runs/digits").iterdir()
    for source in (trained, folder):  # nothing is left of an older export
        out = f"out={folder / 'export/hub'}"
        run("npas-export", f"run={source}", "format=hub", out, code=0)
    assert not (folder / "export/hub/allocation.json").exists()
    text = (folder / "export/hub/README.md").read_text()
    assert message in text and how in text
    (folder / "result.json").rename(tmp_path / "result.json")  # as after a kill
    run("npas-export", f"run={folder}", "format=hub", out, code=0)
    card = (folder / "export/hub/README.md").read_text()
    assert how in card and "# the wrn network of config.yaml" in card
    experiment = experiments.restore(str(folder), {"trainer.device": "cpu"})
    model = models.build(experiment.config.model, experiment.task.spec)
    state = load_file(folder / "export/hub/model.safetensors")
    exec(how, {"npas": npas, "model": model, "state": state})
    x = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(model.eval()(x), experiment.model.eval()(x), rtol=1e-5, atol=1e-5)
