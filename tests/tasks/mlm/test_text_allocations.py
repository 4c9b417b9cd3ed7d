"""Pre-training and fine-tuning networks share alike, so that banks can be taken over."""

import pytest
import torch

from npas import sharing, tasks
from npas.models import build
from npas.reporting.compose import compose

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
