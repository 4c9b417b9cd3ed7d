"""The phrase grounding networks equal the published ones; the baseline sees single words."""

import numpy as np
import pytest
import torch
from network_inputs import SIMNET, build, count, inputs
from torch.nn import functional as F

import npas
from npas.models import bag_of_words


def make(**keys):
    """Build a small one whose batch norms have seen something, ready to measure."""
    model = build("simnet", **{"width": 3} | keys)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            torch.nn.init.uniform_(module.weight, 0.5, 2)
            torch.nn.init.normal_(module.bias)
    for seed in range(3):
        model(**inputs("regions", seed=seed))
    return model.eval()


def test_what_an_option_adds_is_as_the_derivation_says():
    plain = count("simnet", boxes=False)
    # Norms and biases of the layers that are added, beside their weights.
    concepts = 3 * (1024 * 256 + 2 * 256) + 1024 * (300 + 4) + 2 * 1024 + 4
    branch = 300 * 1024 + 1024**2 + 2 * 1024 + 1024
    gru = 3 * 256 * (300 + 256 + 2) + 256 * 1024 + 1024
    more = [({"embeddings": 4}, concepts), ({"phrase": "attention"}, 2 * 300 + 1)]
    for keys, added in (*more, ({"phrase": "gru"}, gru - branch), ({"boxes": True}, 20 * 256)):
        assert count("simnet", **{"boxes": False, **keys}) - plain == added
    assert count("bag_of_words") == 601_601 + 1280
    assert "601,601 parameters; 1,280 more" in (bag_of_words.__doc__ or "")


def naive(model, phrase, regions):
    """Score the regions, RxF, for a phrase, V: one at a time, from the weights by their names."""
    state = {name: value.double().numpy() for name, value in model.state_dict().items()}

    def hidden(name, x):
        x = state[f"{name}.linear.weight"] @ x
        mean, variance = (state[f"{name}.norm.running_{of}"] for of in ("mean", "var"))
        x = (x - mean) / np.sqrt(variance + 1e-5)
        return np.maximum(0, x * state[f"{name}.norm.weight"] + state[f"{name}.norm.bias"])

    def branch(name, x):
        if f"{name}.weight" in state:
            return state[f"{name}.weight"] @ x + state[f"{name}.bias"]
        return state[f"{name}.1.weight"] @ hidden(f"{name}.0", x) + state[f"{name}.1.bias"]

    own = branch("phrase", phrase)
    own *= np.sqrt(len(own)) / np.linalg.norm(own)
    table = np.array([branch("region", region) for region in regions])
    axis = 0 if model.over_regions else 1
    table *= np.sqrt(table.shape[axis]) / np.linalg.norm(table, axis=axis, keepdims=True)
    parts = np.ones(1)
    if model.choice is not None:
        parts = np.exp(branch("choice", phrase))
        parts /= parts.sum()
    scores = []
    for row in table:
        joint = hidden("joint", own * row)
        mixed = sum(part * hidden(f"concepts.{k}", joint) for k, part in enumerate(parts))
        scores.append((state["score.weight"] @ mixed + state["score.bias"]).item())
    return scores


@pytest.mark.parametrize("keys", SIMNET, ids=str)
def test_scores_are_those_of_a_phrase_and_a_region_taken_alone(keys):
    model, given = make(**keys), inputs("regions")
    with torch.no_grad():
        found = model(**given)
        phrases = model.read(given["words"], given["lengths"])
    regions = given["regions"]
    if keys.get("boxes", True):
        regions = torch.cat([regions, given["boxes"]], 2)
    assert found.shape == (2, 3, 4)
    for image in range(2):
        for phrase in range(3):
            expected = naive(model, phrases[image, phrase].numpy(), regions[image].numpy())
            np.testing.assert_allclose(found[image, phrase].numpy(), expected, rtol=1e-3, atol=1e-4)
    if model.over_regions:
        return
    # Filling up with the same phrases and regions, and places beyond the last word: no change.
    longer = {name: torch.cat([value, value], 1) for name, value in given.items()}
    longer["words"] = F.pad(longer["words"], (0, 0, 0, 3))
    with torch.no_grad():
        torch.testing.assert_close(model(**longer), found.repeat(1, 2, 2))


def test_the_baseline_adds_up_what_each_word_says_of_each_feature():
    model, given = build("bag_of_words", width=4), inputs("regions")
    torch.nn.init.normal_(model.bias)
    found = model(**given)
    assert found.shape == (2, 3, 4)
    for image, phrase, region in ((0, 0, 0), (0, 2, 3), (1, 1, 2)):
        length = int(given["lengths"][image, phrase])
        mean = given["words"][image, phrase, :length].mean(0)
        features = torch.cat([given[name][image, region] for name in ("regions", "boxes")])
        expected = model.phrase(mean) @ model.region(features) / 4**0.5 + model.bias
        torch.testing.assert_close(found[image, phrase, region], expected)


def test_it_shares_one_bank_across_text_and_image():
    for keys, text in (({}, "phrase.1.weight"), ({"phrase": "gru"}, "phrase.weight")):
        model = npas.share(build("simnet", width=4, **keys), 0.5)
        layers = {layer.name for layer in npas.allocation(model).layers}
        assert {text, "region.1.weight", "joint.linear.weight"} <= layers
