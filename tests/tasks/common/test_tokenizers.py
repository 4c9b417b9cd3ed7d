"""Published tokenizers are read in each format; what one lacks is one line."""

import json

import pytest
import sentencepiece
from helpers import one_line
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer

from npas.tasks.common import synthetic_text, tokenization


def wordpiece(folder):
    """Write BERT's two forms: the words alone, and the whole tokenizer."""
    words = synthetic_text.write_tokenizer(folder)
    AutoTokenizer.from_pretrained(words).backend_tokenizer.save(str(folder / "tokenizer.json"))
    (words / "vocab.txt").rename(folder / "vocab.txt")


def sentencepieces(folder):
    """Write ALBERT's form."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([f"the {a}{b} sees {b}{a}" for a in "xyzuvw" for b in "abcdef"]),
        model_prefix=str(folder / "spiece"), vocab_size=30, pad_id=0, unk_id=1, bos_id=-1,
        eos_id=-1, control_symbols=["[CLS]", "[SEP]", "[MASK]"], minloglevel=2,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("file", "kind", "write"),
    [
        ("vocab.txt", "bert", wordpiece),
        ("tokenizer.json", "bert", wordpiece),
        ("spiece.model", "albert", sentencepieces),
    ],
)
def test_one_file_will_do_if_a_config_says_what_kind_it_is(file, kind, write, tmp_path):
    write(tmp_path)
    alone = tmp_path / "alone"
    alone.mkdir()
    (tmp_path / file).rename(alone / file)
    with pytest.raises(ValueError, match=r'needs a config\.json .*"model_type": "bert"') as error:
        tokenization.load_tokenizer(str(alone))
    assert "\n" not in str(error.value) and "task.tokenizer=" in str(error.value)
    (alone / "config.json").write_text(json.dumps({"model_type": kind}))
    tokenizer = tokenization.load_tokenizer(str(alone))
    (found,) = tokenizer.encode(["the xa sees"])
    assert found.offsets[0][0] == 0 and found.offsets[-1][1] == 11
    assert set(tokenizer.special) == {"cls", "sep", "pad", "mask"}
    assert all(0 <= number < tokenizer.size for number in tokenizer.special.values())


def test_a_tokenizer_that_cannot_be_read_is_one_line(tmp_path):
    folder = synthetic_text.write_tokenizer(tmp_path)
    words = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "the"]
    bare = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    bare.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
    settings |= {f"{kind}_token": f"[{kind.upper()}]" for kind in tokenization.SPECIAL}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = tokenization.load_tokenizer(str(folder))
    with one_line(r"task\.tokenizer=.* cannot tokenize a text"):
        tokenizer.encode(["what is unknown"])
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        tokenization.load_tokenizer(str(folder))
