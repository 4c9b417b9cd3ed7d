"""Compute the word logits of transformers' BERT and ALBERT at chosen places only.

The last layer has an output for each word of the vocabulary: at all places it takes more memory
than the rest of the network, and the loss is of some 15% of them.
"""

from __future__ import annotations

from typing import Any

import transformers
from torch import Tensor
from transformers.models.albert.modeling_albert import AlbertForPreTrainingOutput
from transformers.models.bert.modeling_bert import BertForPreTrainingOutput


class BertForPreTraining(transformers.BertForPreTraining):
    """Is transformers' class; with `places_BM` the words' logits are of these places, B x M x V."""

    def forward(self, *args: Any, places_BM: Tensor | None = None, **given: Any) -> Any:
        if places_BM is None:
            return super().forward(*args, **given)
        encoded = self.bert(*args, **given, return_dict=True)
        at_places_BMH = _pick(encoded.last_hidden_state, places_BM)
        words, order = self.cls(at_places_BMH, encoded.pooler_output)
        return BertForPreTrainingOutput(prediction_logits=words, seq_relationship_logits=order)


class AlbertForPreTraining(transformers.AlbertForPreTraining):
    """Is transformers' class; with `places_BM` the words' logits are of these places, B x M x V."""

    def forward(self, *args: Any, places_BM: Tensor | None = None, **given: Any) -> Any:
        if places_BM is None:
            return super().forward(*args, **given)
        encoded = self.albert(*args, **given, return_dict=True)
        words = self.predictions(_pick(encoded.last_hidden_state, places_BM))
        order = self.sop_classifier(encoded.pooler_output)
        return AlbertForPreTrainingOutput(prediction_logits=words, sop_logits=order)


def _pick(states_BLH: Tensor, places_BM: Tensor) -> Tensor:
    return states_BLH.gather(1, places_BM[:, :, None].expand(-1, -1, states_BLH.shape[2]))
