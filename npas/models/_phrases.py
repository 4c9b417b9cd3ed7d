"""Make one vector of the words of a phrase or a sentence.

Words come as vectors, W x T x V: of W texts T places of V numbers, 0 from a text's length on.
Lengths, W, are at least 1. Nothing here waits for the device to tell how long a text is.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def mean(words_WTV: Tensor, lengths_W: Tensor) -> Tensor:
    """Return the mean of each text's words, WxV."""
    return words_WTV.sum(1) / lengths_W[:, None]


def within(lengths_W: Tensor, places: int) -> Tensor:
    """Return a mask of the places within the texts, WxT."""
    return torch.arange(places, device=lengths_W.device) < lengths_W[:, None]


class SelfAttention(nn.Module):
    """Attention pooling of a text's words by each word and their mean, of length 1: WxV.

    A linear layer and ReLU score each word beside the mean, and a softmax over the text's words
    makes weights of the scores; without ReLU it would cancel what the mean adds to all of them. A
    word of zeros has no vector: it has no weight, and does not count in the mean.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.score = nn.Linear(2 * width, 1)

    def forward(self, words_WTV: Tensor, lengths_W: Tensor) -> Tensor:
        """Return a vector for each text."""
        inside_WT = within(lengths_W, words_WTV.shape[1])
        known_WT = inside_WT & (words_WTV != 0).any(2)
        context_WV = mean(words_WTV, known_WT.sum(1).clamp(min=1))
        context_WTV = context_WV[:, None].expand_as(words_WTV)
        scores_WT = F.relu(self.score(torch.cat([context_WTV, words_WTV], 2)).squeeze(2))
        # Where no word is known, all are weighed: a softmax needs one.
        weighed_WT = torch.where(known_WT.any(1, keepdim=True), known_WT, inside_WT)
        weights_WT = scores_WT.masked_fill(~weighed_WT, -torch.inf).softmax(1)
        return F.normalize((weights_WT[..., None] * words_WTV).sum(1), dim=1)


class GRU(nn.Module):
    """Read texts word by word, and if `both_ways` also from their last word back, by a second GRU.

    What a bidirectional GRU over packed sequences does, which would wait for the lengths.
    """

    def __init__(self, width: int, hidden: int, both_ways: bool = False) -> None:
        super().__init__()
        self.onward = nn.GRU(width, hidden, batch_first=True)
        self.backward_ = nn.GRU(width, hidden, batch_first=True) if both_ways else None

    def forward(self, words_WTV: Tensor, lengths_W: Tensor) -> Tensor:
        """Return the state at each word, WxTxH: the mean of both ways, 0 from a length on."""
        states_WTH, _ = self.onward(words_WTV)
        if self.backward_ is not None:
            turned_WTV = _turned(words_WTV, lengths_W)
            states_WTH = (states_WTH + _turned(self.backward_(turned_WTV)[0], lengths_W)) / 2
        return states_WTH * within(lengths_W, words_WTV.shape[1])[..., None]

    def last(self, words_WTV: Tensor, lengths_W: Tensor) -> Tensor:
        """Return the state at each text's last word, WxH."""
        states_WTH = self(words_WTV, lengths_W)
        place_W1H = (lengths_W - 1)[:, None, None].expand(-1, 1, states_WTH.shape[2])
        return states_WTH.gather(1, place_W1H).squeeze(1)


def _turned(values_WTV: Tensor, lengths_W: Tensor) -> Tensor:
    """Turn each text around, what is beyond its length staying where it is."""
    place_T = torch.arange(values_WTV.shape[1], device=values_WTV.device)
    from_WT = torch.where(
        place_T < lengths_W[:, None], lengths_W[:, None] - 1 - place_T, place_T.expand(1, -1)
    )
    return values_WTV.gather(1, from_WT[..., None].expand_as(values_WTV))


def glorot(model: nn.Module) -> None:
    """Draw linear layers as TensorFlow does (Glorot and Bengio 2010, uniform); biases are 0."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
