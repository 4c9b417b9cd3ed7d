"""Published tokenizers are read in each of their forms, or what they lack is said in one line."""

import json
from pathlib import Path

import pytest
import sentencepiece

from npas.tasks.common import synthetic_text, tokenization


def wordpiece(folder: Path) -> None:
    """Write BERT's two forms: the words alone, and the whole tokenizer."""
    whole = synthetic_text.write_tokenizer(folder) / "tokenizer.json"
    ids = json.loads(whole.read_text())["model"]["vocab"]
    (folder / "vocab.txt").write_text("\n".join(sorted(ids, key=ids.__getitem__)))
    whole.rename(folder / "tokenizer.json")


def sentencepieces(folder: Path) -> None:
    """Write ALBERT's form."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([f"the {a}{b} sees {b}{a}" for a in "xyzuvw" for b in "abcdef"]),
        model_prefix=str(folder / "spiece"),
        vocab_size=30,
        pad_id=0,
        unk_id=1,
        bos_id=-1,
        eos_id=-1,
        control_symbols=["[CLS]", "[SEP]", "[MASK]"],
        minloglevel=2,
    )


@pytest.mark.parametrize(
    ("file", "kind", "write"),
    [
        ("vocab.txt", "bert", wordpiece),
        ("tokenizer.json", "bert", wordpiece),
        ("spiece.model", "albert", sentencepieces),
    ],
)
def test_one_file_will_do_if_a_config_says_what_kind_it_is(
    file: str, kind: str, write, tmp_path: Path
) -> None:
    write(tmp_path)
    alone = tmp_path / "alone"
    alone.mkdir()
    (tmp_path / file).rename(alone / file)
    with pytest.raises(ValueError, match=r'put a config\.json .*"model_type": "bert"') as error:
        tokenization.load_tokenizer(str(alone))
    assert "\n" not in str(error.value) and "task.tokenizer=" in str(error.value)
    (alone / "config.json").write_text(json.dumps({"model_type": kind}))
    tokenizer = tokenization.load_tokenizer(str(alone))
    (found,) = tokenizer.encode(["the xa sees"])
    assert found.offsets[0][0] == 0 and found.offsets[-1][1] == 11
    assert all(0 <= tokenizer.special(name) < tokenizer.size for name in tokenization.SPECIAL)
