"""Transformers: tied heads, generation with a cache, files, checkpointing and the Trainer."""

import copy
import pickle

import pytest
import torch
from huggingface_hub import PyTorchModelHubMixin
from safetensors.torch import load_file
from tiny import bank
from torch import Tensor, nn
from torch.nn.utils import prune
from transformers import (
    AutoModel,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

import npas

IDS = torch.randint(2, 50, (4, 8), generator=torch.Generator().manual_seed(0))
MASK = torch.ones_like(IDS)


def bert():
    torch.manual_seed(0)
    return BertForMaskedLM(
        BertConfig(
            vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=32, max_position_embeddings=20, hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )  # fmt: skip


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=24, bos_token_id=0,
            eos_token_id=1, pad_token_id=1, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )
    )  # fmt: skip


@torch.no_grad()
def logits(model):
    return model.eval()(IDS, attention_mask=MASK).logits


@pytest.mark.parametrize("build", [bert, gpt2])
def test_tied_heads_stay_tied_through_sharing_files_and_materializing(build, tmp_path):
    dense = npas.count_parameters(build())
    model = npas.share(build(), 0.4)
    assert npas.allocation(model).budget.dense == dense
    assert npas.count_parameters(model) <= 0.4 * dense
    npas.save(model, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert [name for name in stored if "bank" in name] == ["npas_bank_0"]
    assert sum(value.numel() for value in stored.values()) < 0.5 * dense
    loaded = npas.load(tmp_path, build())
    assert torch.equal(logits(loaded), logits(model))
    inward, outward = loaded.get_input_embeddings(), loaded.get_output_embeddings()  # type: ignore[operator]
    assert torch.equal(inward.weight, outward.weight)
    expected = logits(loaded)
    plain = npas.materialize(loaded)
    assert torch.equal(logits(plain), expected)
    inward, outward = plain.get_input_embeddings(), plain.get_output_embeddings()  # type: ignore[operator]
    assert inward.weight is outward.weight
    assert npas.count_parameters(plain) == dense


@pytest.mark.parametrize("build", [bert, gpt2])
def test_materialized_networks_go_through_save_pretrained(build, tmp_path):
    model = npas.materialize(npas.share(build(), 0.4))
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    back = type(model).from_pretrained(tmp_path)  # type: ignore[attr-defined]
    assert torch.equal(logits(back), logits(model))


@pytest.mark.parametrize("build", [bert, gpt2])
def test_a_shared_network_saved_as_pretrained_is_read_by_load_and_refused_by_from_pretrained(
    build, tmp_path
):
    model = npas.share(build(), 0.4)
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    stored = load_file(tmp_path / "model.safetensors")
    assert [name for name in stored if "bank" in name] == ["npas_bank_0"]
    for reader in (type(build()), AutoModel):
        with pytest.raises(ValueError, match=r"shared network, read it with npas\.load"):
            reader.from_pretrained(tmp_path)
    config = type(build().config).from_pretrained(tmp_path)
    loaded = npas.load(tmp_path, type(build())(config))
    assert torch.equal(logits(loaded), logits(model))


def vit():
    torch.manual_seed(0)
    return ViTForImageClassification(
        ViTConfig(
            image_size=8, patch_size=4, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=24, num_labels=3,
        )
    )  # fmt: skip


def test_names_that_transformers_writes_in_an_older_form_are_read_again(tmp_path):
    images = torch.randn(2, 3, 8, 8)
    model = npas.share(vit(), 0.4).eval()
    with torch.no_grad():
        bank(model).add_(0.1)
        expected = model(images).logits
    npas.save_pretrained(model, tmp_path / "npas")
    model.save_pretrained(tmp_path / "transformers")
    for read in (
        lambda: npas.from_pretrained(tmp_path / "npas"),
        lambda: npas.from_pretrained(tmp_path / "npas", vit()),
        lambda: npas.load(tmp_path / "transformers", vit()),
    ):
        assert torch.equal(read().eval()(images).logits, expected)


def cut(model):
    """Take out the last block."""
    model.bert.encoder.layer = model.bert.encoder.layer[:1]
    return model


class Mixed(nn.Sequential, PyTorchModelHubMixin):
    """A network that another library's `save_pretrained` writes."""


@pytest.mark.parametrize(
    ("save", "message"),
    [
        (lambda folder: npas.share(bert(), 0.4).bert.save_pretrained(folder), "cannot save banks"),
        (
            lambda folder: npas.share(Mixed(nn.Linear(9, 9), nn.Linear(9, 9)), 0.7)
            .save_pretrained(folder), "cannot save banks: npas.save the whole",
        ),
        (
            lambda folder: npas.share(bert(), 0.4).save_pretrained(folder, push_to_hub=True),
            "save without push_to_hub",
        ),
        (lambda folder: npas.share(bert(), 0.4).save_pretrained(folder, variant="fp16"), "variant"),
        (
            lambda folder: prune.l1_unstructured(npas.share(bert(), 0.4), "npas_bank_0", 0.1)
            .save_pretrained(folder), "npas_bank_0 is pruned",
        ),
        (lambda folder: cut(npas.share(bert(), 0.4)).save_pretrained(folder), "no longer in the"),
    ],
    ids=[
        "a part", "another library", "an upload", "a variant", "pruned", "a layer gone",
    ],
)  # fmt: skip
def test_other_ways_to_save_pretrained_are_refused(save, message, tmp_path):
    with pytest.raises(ValueError, match=message) as error:
        save(tmp_path)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_what_is_saved_over_older_files_is_what_load_reads(tmp_path):
    """In one file, also where transformers would split it beside the old one."""
    model = npas.share(bert(), 0.4)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        bank(model).mul_(2.0)
    model.bert.extra = nn.Linear(3, 3)  # counted as it is now, as npas.save does
    model.save_pretrained(tmp_path, max_shard_size="4KB")
    again = bert()
    again.bert.extra = nn.Linear(3, 3)
    loaded = npas.load(tmp_path, again)
    assert torch.equal(logits(loaded), logits(model))
    assert npas.allocation(loaded) == npas.allocation(model)


def test_generation_with_a_cache_makes_the_weights_once(generated):
    model = npas.share(gpt2(), 0.4).eval()
    options = {"attention_mask": MASK, "max_new_tokens": 6, "do_sample": False}
    cached = model.generate(IDS, **options)  # type: ignore[operator]
    assert cached.shape[1] > IDS.shape[1] + 1
    plain = model.generate(IDS, use_cache=False, **options)  # type: ignore[operator]
    assert len(generated) == len(set(generated)) == len(npas.allocation(model).layers)
    dense = npas.materialize(model).generate(IDS, **options)  # type: ignore[operator]
    assert torch.equal(cached, plain) and torch.equal(cached, dense)


@pytest.mark.parametrize("build", [bert, gpt2])
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")
def test_checkpointed_blocks_give_the_same_gradients(build):
    found = []
    for reentrant in (None, False, True):
        model = npas.share(build(), 0.4).train()
        if reentrant is not None:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})  # type: ignore[operator]
        model(IDS, attention_mask=MASK, labels=IDS).loss.backward()
        found.append(bank(model).grad)
    for gradient in found[1:]:
        torch.testing.assert_close(gradient, found[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("build", [bert, gpt2])
def test_tied_again_or_resized_a_shared_network_stays_as_it_is(build):
    model = npas.share(build(), 0.4)
    count, expected = npas.count_parameters(model), logits(model)
    for twin in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        twin.tie_weights()
        with pytest.raises(ValueError, match=r"resize the embeddings before npas\.share"):
            twin.resize_token_embeddings(60)
        with pytest.raises(ValueError, match="pass it another seed"):
            twin.init_weights()
        assert torch.equal(logits(twin), expected)
        assert npas.count_parameters(twin) == count
    plain = npas.materialize(model)
    plain.resize_token_embeddings(60, mean_resizing=False)
    assert plain.get_output_embeddings().weight is plain.get_input_embeddings().weight
    assert plain(torch.tensor([[59]])).logits.shape == (1, 1, 60)


class Sentences(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Four sentences of eight tokens, to be repeated, eight times each."""

    def __len__(self):
        return 32

    def __getitem__(self, index):
        ids = torch.randint(2, 50, (8,), generator=torch.Generator().manual_seed(index % 4))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def trainer(model, folder):
    """Return a Trainer with an optimizer of `param_groups`."""
    arguments = TrainingArguments(
        str(folder), max_steps=20, save_steps=10, per_device_train_batch_size=4,
        learning_rate=1e-2, report_to=[], use_cpu=True, logging_steps=1, disable_tqdm=True,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(npas.param_groups(model, 0.1, decay_norm_bias=True), lr=1e-2)
    return Trainer(model, arguments, train_dataset=Sentences(), optimizers=(optimizer, None))


@pytest.mark.slow
@pytest.mark.parametrize("build", [bert, gpt2])
def test_the_trainer_trains_saves_and_resumes(build, tmp_path):
    model = npas.share(build(), 0.4, generator="wavg")
    spared = [
        name for name, p in model.named_parameters() if name in npas.sharing.no_decay_names(model)
    ]
    run = trainer(model, tmp_path)
    run.train()
    losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    # Of two networks and six seeds each: to 0.65 of it and below.
    assert float(losses[-1]) < 0.85 * float(losses[0])
    assert len(run.optimizer.param_groups[1]["params"]) == len(spared) > 0
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    checkpoint = tmp_path / "checkpoint-10"
    stored = load_file(checkpoint / "model.safetensors")
    assert set(stored) <= set(model.state_dict()) and "npas_bank_0" in stored
    assert torch.equal(bank(npas.load(checkpoint, build())), stored["npas_bank_0"])

    other = npas.share(build(), 0.4, generator="wavg", seed=5)
    trainer(other, tmp_path).train(resume_from_checkpoint=str(checkpoint))
    for name, value in other.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0, msg=name)
