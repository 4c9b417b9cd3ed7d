"""Words are looked up in a file of vectors, or come from a BERT; what is wrong is one line."""

from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel

from npas.tasks import _standin_text, _text, _words

TEXTS = ["A red Square", "the small circle, left of it", "zzz", "don't"]
VECTORS = "a 1 0\nred 0 1\nsquare 0.5 0.5\nRed 9 9\ncircle -1 2e-1\nleft 3 3\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "vectors.txt"
    path.write_text(VECTORS)
    return path


def test_texts_are_cut_into_words_without_punctuation() -> None:
    assert _words.split("A man, in a 'red' T-shirt; don't!") == [
        *("a", "man", "in", "a", "red", "t", "shirt"),
        "don't",
    ]


def test_known_words_are_looked_up_and_others_left_out(file: Path) -> None:
    words = _words.look_up(TEXTS, file, 2, 10)
    found_PTV, lengths_P = words.take(torch.tensor([[1, 0], [2, 3]]))
    assert lengths_P.tolist() == [[2, 3], [1, 1]]
    assert found_PTV.shape == (2, 2, 3, 2)
    assert found_PTV[0, 1].tolist() == [[1, 0], [0, 1], [0.5, 0.5]]
    torch.testing.assert_close(found_PTV[0, 0], torch.tensor([[-1, 0.2], [3, 3], [0, 0]]))
    assert not found_PTV[1].any()


def test_of_a_long_text_the_last_words_are_kept(file: Path) -> None:
    words = _words.look_up(TEXTS, file, 2, 2)
    assert words.take(torch.tensor(0))[0].tolist() == [[0, 1], [0.5, 0.5]]


def test_a_first_line_that_counts_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "vectors.vec"
    path.write_text("6 2\n" + VECTORS)
    assert list(_words.read_vectors(path, 2, ["red", "up"])) == ["red"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "is not there: put word vectors there"),
        ("a 1 0\nred 0\n", "line 2 has 1 numbers and not 2: set task.word_width"),
        ("a 1 x\n", "cannot be read as word vectors .could not convert"),
        ("a 1 nan\n", "a has no finite ones"),
        ("b 1 0\n", "knows none of the words"),
        ("\xff", "cannot be read as word vectors .'utf-8'"),
    ],
)
def test_a_file_that_is_no_vectors_is_refused(tmp_path: Path, text: str | None, said: str) -> None:
    path = tmp_path / "vectors.txt"
    if text is not None:
        path.write_bytes(text.encode("latin1"))
    with pytest.raises(ValueError, match=said) as caught:
        _words.look_up(["a"], path, 2, 10)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    folder = _standin_text.write_tokenizer(tmp_path)
    torch.manual_seed(0)
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    size = _text.load_tokenizer(str(folder)).size
    BertModel(BertConfig(vocab_size=size, intermediate_size=8, **shape)).save_pretrained(folder)
    return folder


def test_a_bert_says_what_words_mean_where_they_stand(
    bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["Where was Ada born?", "Ada", "", "Ada was born in Paris."]
    device = torch.device("cpu")
    words = _words.from_bert(texts, str(bert), 8, 10, device)
    model, tokenizer = BertModel.from_pretrained(bert).eval(), _text.load_tokenizer(str(bert))
    ends = tokenizer.special("cls"), tokenizer.special("sep")
    for i, encoded in enumerate(tokenizer.encode(texts)):
        ids = torch.tensor([[ends[0], *encoded.ids, ends[1]]])
        alone_TV = model(ids).last_hidden_state[0, 1:-1].detach()
        found_TV, length = words.take(torch.tensor(i))
        assert int(length) == max(1, len(alone_TV))
        torch.testing.assert_close(found_TV[: len(alone_TV)], alone_TV, atol=2e-3, rtol=2e-3)
        assert not found_TV[len(alone_TV) :].any()
    with pytest.raises(ValueError, match=r"gives 8 numbers a word, and task\.word_width=300"):
        _words.from_bert(texts, str(bert), 300, 10, device)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=r"task\.bert=.*cannot be read"):
        (bert / "config.json").write_text("{")
        _words.from_bert(texts, str(bert), 8, 10, device)
