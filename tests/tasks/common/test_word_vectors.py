"""Words are looked up in a file of vectors or encoded by BERT; a bad file is one line."""

import pytest
import torch
from helpers import one_line
from transformers import BertConfig, BertModel

from npas.tasks.common import synthetic_text, tokenization, word_vectors

TEXTS = ["A red Square", "the small circle, left of it", "zzz", "don't"]
VECTORS = "a 1 0\nred 0 1\nsquare 0.5 0.5\nRed 9 9\ncircle -1 2e-1\nleft 3 3\n"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "vectors.txt"
    path.write_text(VECTORS)
    return path


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A man, in a 'red' cap!", "a man in a red cap"),
        ("a man's dog; it's big", "a man 's dog it 's big"),
        ("a man\u2019s dog", "a man 's dog"),  # as typography has it
        ("a man 's dog", "a man 's dog"),  # already apart
        ("don't, isn't (can't)", "do n't is n't ca n't"),
        ("we're, I've; he'll: she'd! I'm", "we 're i 've he 'll she 'd i 'm"),
        ("the dogs' bowls", "the dogs bowls"),
        ("at 5 o'clock", "at 5 o'clock"),
        ("the letter 'm' on a 'stop' sign", "the letter m on a stop sign"),
        ("a T-shirt", "a t-shirt"),
        ("a T-shirt-clad man", "a t shirt clad man"),
        ("a dark-haired woman - and a dog", "a dark haired woman and a dog"),
        ("her mother-in-law's hat", "her mother-in-law 's hat"),
        ("a black-and-white one", "a black and white one"),
        (" -- ' 's", "'s"),
    ],
)
def test_texts_are_cut_into_words_as_vectors_are_of(text, words):
    known = {"t-shirt", "mother-in-law", "black-and"}
    assert word_vectors.split(text, known) == words.split()


def test_known_words_are_looked_up_and_others_left_out(file):
    words = word_vectors.look_up(TEXTS, file, 2, 10)
    found_PTV, lengths_P = words.take(torch.tensor([[1, 0], [2, 3]]))
    assert lengths_P.tolist() == [[2, 3], [1, 1]]
    assert found_PTV.shape == (2, 2, 3, 2)
    assert found_PTV[0, 1].tolist() == [[1, 0], [0, 1], [0.5, 0.5]]
    torch.testing.assert_close(found_PTV[0, 0], torch.tensor([[-1, 0.2], [3, 3], [0, 0]]))
    assert not found_PTV[1].any()
    words = word_vectors.look_up(TEXTS, file, 2, 2)  # of which the last words are kept
    assert words.take(torch.tensor(0))[0].tolist() == [[0, 1], [0.5, 0.5]]


def test_what_is_joined_is_looked_up_whole_or_by_its_parts(tmp_path):
    path = tmp_path / "vectors.txt"
    path.write_text("t-shirt 1 0\ndark 2 0\nhaired 3 0\nt 4 0\nshirt 5 0\n's 6 0\nn't 7 0\n")
    words = word_vectors.look_up(["dark-haired", "t-shirt's", "don't"], path, 2, 10)
    found = [words.take(torch.tensor(i))[0][:, 0].tolist() for i in range(3)]
    assert found == [[2, 3], [1, 6], [7, 0]]


def test_lines_of_other_words_are_passed_over(tmp_path):
    path = tmp_path / "vectors.txt"
    # The third and the fourth are no vectors of "at" and of "left"; there is a word in the fifth.
    lines = [b"6 2", b"", b"at name@site 9 9", b"left . . 9 9", b"5\xc2\xa0th 9 9", b" red\t 1  2 "]
    lines += [b"\t", b"\xff\xfe 9 9", b"at 3 4\r", b"caf\xe9 9 9", b"unheard 1", b"AT 9 9"]
    path.write_bytes(b"\n".join(lines) + b"\n")
    rows, table_NV = word_vectors.read_vectors(path, 2, ["at left", "6", "5 red"])
    assert rows == {"red": 1, "at": 2} and table_NV.tolist() == [[0, 0], [1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"\(No such file or directory\): put GloVe"),
        ("a 1 0\nred 0\n", r"\(line 2 has 1 numbers: set task\.word_width"),
        ("a 1 0 2 3\n", r"\(line 1 has 4 numbers: set task\.word_width"),
        ("a 1 x\n", r"\(could not convert"),
        ("b 1 0\n", r"\(it has none of the words"),
    ],
)
def test_a_file_that_is_no_vectors_is_refused(tmp_path, text, message):
    path = tmp_path / "vectors.txt"
    if text is not None:
        path.write_bytes(text.encode("latin1"))
    with one_line(f"cannot be read {message}"):
        word_vectors.look_up(["a red one up"], path, 2, 10)


@pytest.fixture
def bert(tmp_path):
    folder = synthetic_text.write_tokenizer(tmp_path)
    torch.manual_seed(0)
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    size = tokenization.load_tokenizer(str(folder)).size
    BertModel(BertConfig(vocab_size=size, intermediate_size=8, **shape)).save_pretrained(folder)
    return folder


def test_bert_gives_contextual_word_vectors(bert, monkeypatch):
    texts = ["Where was Ada born?", "Ada", "", "Ada was born in Paris."]
    device = torch.device("cpu")
    words = word_vectors.from_bert(texts, str(bert), 8, 10, device)
    model = BertModel.from_pretrained(bert).eval()
    tokenizer = tokenization.load_tokenizer(str(bert))
    ends = tokenizer.special["cls"], tokenizer.special["sep"]
    for i, encoded in enumerate(tokenizer.encode(texts)):
        ids = torch.tensor([[ends[0], *encoded.ids, ends[1]]])
        alone_TV = model(ids).last_hidden_state[0, 1:-1].detach()
        found_TV, length = words.take(torch.tensor(i))
        assert int(length) == max(1, len(alone_TV))
        torch.testing.assert_close(found_TV[: len(alone_TV)], alone_TV, atol=2e-3, rtol=2e-3)
        assert not found_TV[len(alone_TV) :].any()
    with pytest.raises(ValueError, match=r"needs task\.word_width=8, not 300"):
        word_vectors.from_bert(texts, str(bert), 300, 10, device)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=r"task\.bert=.*cannot be read"):
        (bert / "config.json").write_text("{")
        word_vectors.from_bert(texts, str(bert), 8, 10, device)
