"""The keys of Muon, of fixed coefficients and of corrections are checked, and ignored if idle."""

import pytest
from test_config import checked

from npas.config import config_hash, ignored

WRONG = [
    ({"sharing__low_rank": -1}, "sharing.low_rank must be at least 0"),
    ({"sharing__groups": "depth:0"}, "place, depth:2, a mapping"),
    ({"optim__muon": {"bank": "sgd"}}, "optim.muon.bank must be adam or templates"),
    ({"optim__muon": {"bank_lr": 0}}, "optim.muon.bank_lr must be above 0"),
    ({"optim__muon": {"beta1": 1}}, "optim.muon.beta1 must be below 1"),
    ({"optim__muon": {"newton_schulz_steps": 0}}, "newton_schulz_steps must be at least 1"),
    ({"optim__muon": {"embeding_lr": 1}}, "did you mean 'optim.muon.embedding_lr'?"),
]


@pytest.mark.parametrize(("changes", "line"), WRONG, ids=lambda value: str(value)[:50])
def test_what_is_wrong_names_the_key(changes, line):
    with pytest.raises(ValueError) as caught:
        checked(**changes)
    assert line in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("groups", ["place", "depth:2", "depth:12"])
def test_groups_by_names_are_no_paths(groups):
    assert checked(sharing__groups=groups).sharing.groups == groups


def test_muons_keys_are_for_muon_alone():
    own = {"bank": "adam", "beta1": 0.8}
    assert [*ignored(checked(optim__muon=own))] == ["optim.muon.bank", "optim.muon.beta1"]
    assert config_hash(checked(optim__muon=own)) == config_hash(checked())
    muon = {"name": "muon", "beta2": 0.9, "nesterov": False}
    assert not ignored(checked(optim=muon | {"muon": own}))
    hashes = {config_hash(checked(optim=muon | {"muon": m})) for m in ({}, own)}
    assert len(hashes) == 2
