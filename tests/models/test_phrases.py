"""Text vectors depend on the words of a text alone, and equal torch's own layers."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from npas import sharing
from npas.models import _phrases

LENGTHS_W = torch.tensor([1, 4, 7, 3])
WIDTH = 5


def texts(beyond=0.0):
    words_WTV = torch.randn(4, 7, WIDTH, generator=torch.Generator().manual_seed(1))
    return words_WTV.masked_fill(~_phrases.within(LENGTHS_W, 7)[..., None], beyond)


@pytest.mark.parametrize("both_ways", [False, True])
def test_a_gru_reads_what_one_over_packed_texts_does(both_ways):
    ours = _phrases.GRU(WIDTH, 6, both_ways)
    theirs = nn.GRU(WIDTH, 6, batch_first=True, bidirectional=both_ways)
    ours_named, to = dict(ours.named_parameters()), dict(theirs.named_parameters())
    with torch.no_grad():
        for name, parameter in to.items():
            way = "backward_" if name.endswith("_reverse") else "onward"
            parameter.copy_(ours_named[f"{way}.{name.removesuffix('_reverse')}"])
    packed = pack_padded_sequence(texts(), LENGTHS_W, batch_first=True, enforce_sorted=False)
    states_WTH, _ = pad_packed_sequence(theirs(packed)[0], batch_first=True)
    if both_ways:
        states_WTH = (states_WTH[..., :6] + states_WTH[..., 6:]) / 2
    torch.testing.assert_close(ours(texts(), LENGTHS_W), states_WTH)
    last_WH = torch.stack([own[n - 1] for own, n in zip(states_WTH, LENGTHS_W, strict=True)])
    torch.testing.assert_close(ours.last(texts(), LENGTHS_W), last_WH)
    assert sharing.count_parameters(ours) == sharing.count_parameters(theirs)


def by_hand(attention, text_TV):
    """Weigh the words of one text, none of which is beyond its end or zeros."""
    mean_TV = text_TV.mean(0).expand_as(text_TV)
    joined_TC = torch.cat([mean_TV, text_TV], 1)
    score_T = (joined_TC @ attention.score.weight[0] + attention.score.bias).clamp(min=0)
    return nn.functional.normalize((score_T.softmax(0)[:, None] * text_TV).sum(0), dim=0)


def test_attention_scores_words_by_themselves_and_by_their_text():
    attention = _phrases.SelfAttention(WIDTH)
    nn.init.normal_(attention.score.weight)
    found_WV = attention(texts(), LENGTHS_W)
    torch.testing.assert_close(found_WV.norm(dim=1), torch.ones(4))
    for text_TV, length, found_V in zip(texts(), LENGTHS_W, found_WV, strict=True):
        torch.testing.assert_close(found_V, by_hand(attention, text_TV[:length]))
    with torch.no_grad():
        attention.score.weight[:, :WIDTH] = 0
    without_context_WV = attention(texts(), LENGTHS_W)
    assert (found_WV - without_context_WV).abs().max() > 1e-4  # over ten seeds: 0.004 and above


def test_attention_passes_over_words_of_zeros():
    attention = _phrases.SelfAttention(WIDTH)
    words_WTV = texts()
    gaps_WTV = torch.zeros(4, 10, WIDTH)
    gaps_WTV[:, [0, 2, 3, 5, 6, 8, 9]] = words_WTV  # none at 1, 4 and 7
    last_W = torch.tensor([1, 6, 10, 4])
    torch.testing.assert_close(attention(gaps_WTV, last_W), attention(words_WTV, LENGTHS_W))
    nothing_WV = attention((words_WTV * 0).requires_grad_(), LENGTHS_W)
    nothing_WV.sum().backward()
    assert not nothing_WV.any()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in attention.parameters())
