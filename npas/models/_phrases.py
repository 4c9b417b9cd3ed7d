"""Pool the word vectors of phrases or sentences, without synchronizing with the device.

Words are WxTxV: W texts of T words with V numbers, zeros after a text's length. Lengths, W, are at
least 1.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def mean(words_WTV: Tensor, lengths_W: Tensor) -> Tensor:
    """Return the mean of each text's words, WxV."""
    return words_WTV.sum(1) / lengths_W[:, None]


def within(lengths_W: Tensor, size: int) -> Tensor:
    """Return a mask of the words within the texts, WxT, with T = `size`."""
    return torch.arange(size, device=lengths_W.device) < lengths_W[:, None]


class SelfAttention(nn.Module):
    """Attention pooling of a text's words, scored by each word and the mean: WxV, of norm 1.

    A linear layer and ReLU score each word concatenated with the mean, followed by a softmax over
    the text's words. Without the ReLU, the softmax would cancel the mean's contribution. Words of
    zeros have no vector: they get no weight, and are not in the mean.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.score = nn.Linear(2 * width, 1)

    def forward(self, words_WTV: Tensor, lengths_W: Tensor) -> Tensor:
        inside_WT = within(lengths_W, words_WTV.shape[1])
        known_WT = inside_WT & (words_WTV != 0).any(2)
        context_WV = mean(words_WTV, known_WT.sum(1).clamp(min=1))
        context_WTV = context_WV[:, None].expand_as(words_WTV)
        scores_WT = F.relu(self.score(torch.cat([context_WTV, words_WTV], 2)).squeeze(2))
        # If no word is known, all are used, since a softmax needs at least one.
        used_WT = torch.where(known_WT.any(1, keepdim=True), known_WT, inside_WT)
        weights_WT = scores_WT.masked_fill(~used_WT, -torch.inf).softmax(1)
        return F.normalize((weights_WT[..., None] * words_WTV).sum(1), dim=1)


class GRU(nn.Module):
    """A GRU, bidirectional if `both_ways`, without packed sequences, which would need a sync."""

    def __init__(self, width: int, hidden: int, both_ways: bool = False) -> None:
        super().__init__()
        self.onward = nn.GRU(width, hidden, batch_first=True)
        self.backward_ = nn.GRU(width, hidden, batch_first=True) if both_ways else None

    def forward(self, words_WTV: Tensor, lengths_W: Tensor) -> Tensor:
        """Return the state at each word, WxTxH: the mean of both directions, 0 after the length."""
        states_WTH, _ = self.onward(words_WTV)
        if self.backward_ is not None:
            backward_WTH, _ = self.backward_(_reversed(words_WTV, lengths_W))
            states_WTH = (states_WTH + _reversed(backward_WTH, lengths_W)) / 2
        return states_WTH * within(lengths_W, words_WTV.shape[1])[..., None]

    def last(self, words_WTV: Tensor, lengths_W: Tensor) -> Tensor:
        """Return the state at each text's last word, WxH."""
        states_WTH = self(words_WTV, lengths_W)
        index_W1H = (lengths_W - 1)[:, None, None].expand(-1, 1, states_WTH.shape[2])
        return states_WTH.gather(1, index_W1H).squeeze(1)


def _reversed(values_WTV: Tensor, lengths_W: Tensor) -> Tensor:
    index_T = torch.arange(values_WTV.shape[1], device=values_WTV.device)
    from_WT = torch.where(
        index_T < lengths_W[:, None], lengths_W[:, None] - 1 - index_T, index_T.expand(1, -1)
    )
    return values_WTV.gather(1, from_WT[..., None].expand_as(values_WTV))


def glorot(model: nn.Module) -> None:
    """Initialize linear layers as TensorFlow does: Glorot uniform (2010), biases with 0."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
