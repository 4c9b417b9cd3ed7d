"""SCAN's files are read as published; a bad file is one line."""

import json

import numpy as np
import pytest
import torch
from helpers import one_line
from retrieval_files import COUNTS, REGIONS, WIDTH, captions, features, write

from npas.tasks.retrieval import reader


@pytest.mark.parametrize("repeated", [False, True])
def test_an_image_has_its_own_features_and_sentences(tmp_path, repeated):
    folder = write(tmp_path, repeated=repeated)
    for split, count in COUNTS.items():
        found = reader.read(folder, split, REGIONS, WIDTH)
        assert len(found) == count and found.captions == captions(split)
        index = torch.tensor([count - 1, 0, 2])
        regions = found.features.read(index)
        assert regions.dtype == torch.float32
        assert torch.equal(regions, torch.from_numpy(features(split))[index])
        found.features.check()
    fewer = reader.read(folder, "train", 2, WIDTH)
    assert fewer.features.read(torch.arange(3)).shape == (3, 2, WIDTH)
    (folder / "train_ims.npy").unlink()
    with pytest.raises(ValueError, match=r"train_ims.npy cannot be read \(No such file"):
        fewer.features.read(torch.arange(2))


@pytest.mark.parametrize("each", [1, 5])
def test_names_are_of_images_or_of_sentences(tmp_path, each):
    folder = write(tmp_path)
    assert reader.read(folder, "dev", REGIONS, WIDTH).names == ["0", "1", "2", "3"]
    names = [f"im{i}" for i in range(4)]
    lines = [name for name in names for _ in range(each)]
    (folder / "dev_ids.txt").write_text("\r\n".join(lines) + "\r\n")
    assert reader.read(folder, "dev", REGIONS, WIDTH).names == names


def test_odd_characters_break_no_lines(tmp_path):
    folder = write(tmp_path)
    lines = captions("dev")
    lines[3], lines[7] = "a\x85dog\u2028runs\rthere\x0c", ""
    (folder / "dev_caps.txt").write_bytes("\n".join(lines).encode())  # and no break at the end
    assert reader.read(folder, "dev", REGIONS, WIDTH).captions == lines


def save(array):
    return lambda folder: np.save(folder / "dev_ims.npy", array)


def put(name, text):
    raw = text if isinstance(text, bytes) else text.encode()
    return lambda folder: (folder / name).write_bytes(raw) and None


def cut(name):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-9]) and None


LINES = "\n".join(captions("dev"))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "dev_ims.npy").unlink(), "dev_ims.npy cannot be read .*: put"),
        (put("dev_caps.txt", LINES + "\na sixth"), "21 lines in dev_caps.txt, 5 per image, and"),
        (put("dev_caps.txt", b"\xff\xfe"), "dev_caps.txt cannot be read .*utf-8.*: put"),
        (cut("dev_ims.npy"), "dev_ims.npy cannot be read .*: put"),
        (save(np.zeros((4, 3, 6), np.float32)), "6 numbers a region: set task.region_width"),
        (save(np.zeros((4, 2, 4), np.float32)), "at least task.regions=3"),
        (save(np.zeros((5, 3, 4), np.float32)), "and 5 rows in dev_ims.npy and 4 names"),
        (save(np.zeros((4, 3, 4), np.int64)), "holds int64 of shape"),
        (save(np.array([{}] * 4)), "dev_ims.npy cannot be read"),  # a pickle is not opened
        (put("dev_ids.txt", "a\nb\n"), "4 rows in dev_ims.npy and 2 names"),
    ],
)
def test_a_bad_file_is_named_with_what_to_do(tmp_path, spoil, message):
    folder = write(tmp_path)
    spoil(folder)
    with one_line(message):
        reader.read(folder, "dev", REGIONS, WIDTH)
    assert len(reader.read(folder, "test", REGIONS, WIDTH)) == COUNTS["test"]


# --- words


VOCABULARY = {"<pad>": 0, "<start>": 1, "<end>": 2, "<unk>": 3, "a": 4, "dog": 5, "purple": 6}
ROWS = {"a": 1, "dog": 2}


def looked_up(texts, most=4, numbers=VOCABULARY):
    table = np.concatenate([np.zeros((1, 2)), 1 + np.arange(4).reshape(2, 2)]).astype(np.float32)
    return reader.look_up(texts, numbers, ROWS, table, most)


def test_a_sentence_is_its_words_between_two_marks():
    found = looked_up(["A purple dog, today!", "a dog a dog a a", ""])
    taken = found.take(torch.tensor([[0, 2], [1, 0]]))
    assert {k: (v.dtype, tuple(v.shape)) for k, v in taken.items()} == {
        "words": (torch.float32, (2, 2, 6, 2)),
        "lengths": (torch.int64, (2, 2)),
        "ids": (torch.int64, (2, 2, 6)),
    }
    assert taken["ids"].tolist()[0] == [[1, 4, 6, 5, 3, 2], [1, 2, 0, 0, 0, 0]]
    assert taken["ids"].tolist()[1][0] == [1, 4, 5, 4, 5, 2]  # the first four words
    assert taken["lengths"].tolist() == [[6, 2], [6, 6]]
    # Words without a vector, the marks among them, and what is behind the end are zeros.
    assert taken["words"][0, 0].tolist() == [[0, 0], [1, 2], [0, 0], [3, 4], [0, 0], [0, 0]]
    assert not taken["words"][0, 1].any()


def test_joined_words_are_numbered_whole_where_they_are_known_so():
    texts = ["a T-shirt's dog", "a dog-purple a"]
    numbers = VOCABULARY | {"t-shirt": 7, "'s": 8}
    assert looked_up(texts, 5, numbers).ids_UT.tolist() == [
        [1, 4, 7, 8, 5, 2, 0],
        [1, 4, 5, 6, 4, 2, 0],
    ]
    assert looked_up(texts, 5).ids_UT.tolist()[0] == [1, 4, 3, 3, 3, 5, 2]
    found = reader.count_words(["T-shirt's"] * 4, {"t-shirt"})
    assert set(found) - set(reader.SPECIAL) == {"'s", "t-shirt"}


def changed(change):
    found = {"<pad>": 0, "<start>": 1, "<end>": 2, "<unk>": 3, "dog": 4}
    change(found)
    return json.dumps({"word2idx": found})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Expecting property name"),
        ('{"word2idx": 3}', "not iterable"),
        (changed(lambda found: found.pop("<unk>")), "its 4 words are not numbered"),
        (changed(lambda found: found.update({"<pad>": 4, "dog": 0})), "not numbered from <pad>, 0"),
        (changed(lambda found: found.update({"cat": found.pop("<unk>")})), "it must have"),
    ],
)
def test_a_bad_vocabulary_is_named(tmp_path, text, message):
    path = tmp_path / "x_vocab.json"
    path.write_text(text)
    with one_line(message):
        reader.read_vocabulary(path)
