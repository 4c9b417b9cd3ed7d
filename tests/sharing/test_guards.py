"""Methods that look for dense parameters leave a shared network as it is, and work again after."""

import copy
import pickle
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import npas

SMALL: dict[str, Any] = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2}
SMALL |= {"num_attention_heads": 2, "intermediate_size": 32}
MODELS: dict[str, dict[str, Any]] = {
    "BertForMaskedLM": SMALL,
    "AlbertForMaskedLM": SMALL | {"embedding_size": 8},
    "GPT2LMHeadModel": {
        "vocab_size": 64, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16,
        "bos_token_id": 1, "eos_token_id": 2,
    },
}  # fmt: skip


@pytest.fixture(params=MODELS)
def dense(request: pytest.FixtureRequest) -> nn.Module:
    transformers.logging.set_verbosity_error()
    cls = getattr(transformers, request.param)
    torch.manual_seed(0)
    return cls(cls.config_class(**MODELS[request.param])).eval()


def test_tied_again_or_resized_a_shared_network_stays_as_it_is(dense: Any) -> None:
    model = npas.share(copy.deepcopy(dense), 0.6)
    ids = torch.arange(8)[None]
    count = npas.count_parameters(model)
    with torch.no_grad():
        outputs = model(ids).logits
        for twin in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            twin.tie_weights()
            twin.tie_weights(recompute_mapping=False)
            with pytest.raises(ValueError, match=r"resize the embeddings before npas\.share"):
                twin.resize_token_embeddings(80)
            with pytest.raises(ValueError, match="give it another seed"):
                twin.init_weights()
            assert torch.equal(twin(ids).logits, outputs)
            assert npas.count_parameters(twin) == count


def test_materialized_it_is_tied_and_resizes_like_the_dense_one(dense: Any) -> None:
    plain: Any = npas.materialize(npas.share(copy.deepcopy(dense), 0.6))
    for model in (dense, plain):
        model.tie_weights()
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
        model.resize_token_embeddings(80, mean_resizing=False)
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert npas.count_parameters(plain) == npas.count_parameters(dense)
    assert plain(torch.tensor([[79]])).logits.shape == (1, 1, 80)


def test_networks_without_such_methods_get_none() -> None:
    model = npas.share(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), 0.6)
    assert not any(hasattr(model, name) for name in ("tie_weights", "resize_token_embeddings"))
