"""Language models: streams, batches, the whole-part loss and the bytes of tokens."""

import io
import math

import helpers
import numpy as np
import pytest
import torch
from helpers import one_line
from torch import nn

from npas.cli import plan
from npas.tasks.lm import reader
from npas.tasks.lm import task as lm
from npas.tasks.lm.reader import HEADER_BYTES, Stream


def text(length, seed=0):
    return np.random.default_rng(seed).integers(0, 32, length).astype("<u2")


def write_shard(path, tokens):
    header = np.zeros(256, dtype="<i4")
    header[:3] = reader.MAGIC, reader.VERSION, len(tokens)
    path.write_bytes(header.tobytes() + tokens.tobytes())


def made(root, dataset, data=(), **config):
    """Write a small source of each kind; its tokens are below 32, those of text 256 bytes."""
    folder = root / "own"
    folder.mkdir(exist_ok=True)
    for i in range(3):
        write_shard(folder / f"fineweb_train_{i}.bin", text(100 + i, i))
    write_shard(folder / "fineweb_val_0.bin", text(75))
    text(500).tofile(folder / "train.bin")
    text(75).tofile(folder / "val.bin")
    (folder / "a.txt").write_bytes(bytes(text(750).astype("u1") + 65))
    size = 256 if dataset == "text" else 32
    keys = {"dataset": dataset, "length": 8, "steps": 5, "vocab_size": size, "folder": "own"}
    return helpers.make("lm", root, data=data, **(keys | config))


class Bigram(nn.Module):
    """Logits that depend on the token itself and on where it stands in its row."""

    def __init__(self, size):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Parameter(torch.randn(size, size))
        self.place = nn.Parameter(torch.randn(64, size))

    def forward(self, tokens_BL):
        return self.table[tokens_BL] + self.place[: tokens_BL.shape[1]]


def test_a_stream_is_its_parts_one_after_the_other_and_from_the_start_again():
    parts = [text(5, 1), text(1, 2), text(7, 3)]
    stream, whole = Stream(parts), np.concatenate(parts)
    for start in range(30):
        for count in (1, 3, 13, 30):
            expected = np.take(whole, range(start, start + count), mode="wrap")
            assert stream.take(start, count).tolist() == expected.tolist()


@pytest.mark.parametrize("dataset", ["fineweb", "bins", "text"])
def test_a_batch_depends_on_seed_and_step_alone(dataset, tmp_path):
    task = made(tmp_path, dataset)
    batches = [b for epoch in (0, 1) for b in task.train_batches(epoch, 4)]
    again = made(tmp_path, dataset, steps=2)  # the same steps, counted in other epochs
    for step, batch in enumerate(batches[:8]):
        (alone,) = again.train_batches(step // 2, 4, range(step % 2, step % 2 + 1))
        assert torch.equal(alone.inputs, batch.inputs)
        assert torch.equal(batch.inputs[:, 1:], batch.targets[:, :-1])
    assert len(batches) == 10 and not torch.equal(batches[0].inputs, batches[5].inputs)


@pytest.mark.parametrize("world", [1, 2])
def test_ranks_read_the_contests_spans(world, tmp_path):
    task = made(tmp_path, "fineweb")
    whole = np.concatenate([text(100 + i, i) for i in range(3)])
    local = 4 // world
    for rank in range(world):
        for step, batch in enumerate(task.train_batches(0, 4, rank=rank, world=world)):
            span = local * 8 + 1
            start = (step * world + rank) * span
            read = np.take(whole, range(start, start + span), mode="wrap")
            assert batch.inputs.flatten().tolist() == read[:-1].tolist()
            assert batch.targets.flatten().tolist() == read[1:].tolist()


@pytest.mark.parametrize(("dataset", "scored"), [("fineweb", 72), ("bins", 74), ("text", 74)])
def test_every_token_of_the_test_part_is_scored_once(dataset, scored, tmp_path, monkeypatch):
    monkeypatch.setattr(lm, "EVAL_TOKENS", 24)  # several batches
    task = made(tmp_path, dataset)
    model = Bigram(task.config.vocab_size)
    tokens = torch.from_numpy(text(75).astype("i8"))
    if dataset == "text":
        tokens = torch.from_numpy(text(750).astype("i8"))[675:] + 65
    total = 0.0
    for place in range(scored):
        row = place - place % 8
        logits = model(tokens[None, row : place + 1])[0, -1].double()
        total -= logits.log_softmax(0)[tokens[place + 1]].item()
    found = task.evaluate(model, "test")
    assert found["loss"] == pytest.approx(total / scored, rel=1e-6)
    assert ("bits_per_byte" in found) == (dataset == "text")
    if dataset == "text":
        assert found["bits_per_byte"] == pytest.approx(found["loss"] / math.log(2))


def test_part_of_the_training_text_is_held_out(tmp_path):
    task = made(tmp_path, "bins", {"val_fraction": 0.2})
    assert [len(task.parts[part]) for part in ("train", "val", "test")] == [400, 100, 75]
    assert task.parts["val"].take(0, 100).tolist() == text(500)[400:].tolist()


@pytest.fixture(scope="module")
def pieces():
    """A SentencePiece model with byte pieces, control and unused ones."""
    import sentencepiece

    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdeéß日"), rng.integers(1, 6))) for _ in range(200)]
    lines = [" ".join(rng.choice(words, 12)) for _ in range(300)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=420, model_type="bpe",
        byte_fallback=True, control_symbols=["<pad>"], user_defined_symbols=["<x>"], minloglevel=2,
    )  # fmt: skip
    return model.getvalue()


def test_bytes_of_tokens_follow_the_contests_rule(pieces, tmp_path):
    from transformers.convert_slow_tokenizer import import_protobuf

    path = tmp_path / "pieces.model"
    path.write_bytes(pieces)
    known = reader.of_sentencepiece(path)
    described = import_protobuf().ModelProto.FromString(pieces).pieces
    NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
    assert {piece.type for piece in described} >= {NORMAL, UNKNOWN, CONTROL, USER, BYTE}

    def size(token, before):
        piece = described[token]
        if piece.type in (UNKNOWN, CONTROL, UNUSED, BYTE):
            return int(piece.type == BYTE)
        spelled = piece.piece.removeprefix("▁")
        counts = spelled != piece.piece
        counts &= described[before].type not in (UNKNOWN, CONTROL, UNUSED)
        return counts + len(spelled.encode("utf-8"))

    rows = torch.from_numpy(np.random.default_rng(1).integers(0, len(described), (10_000, 9)))
    found = known.bytes_of(rows[:, 1:], rows[:, :-1])
    table = torch.tensor(
        [[size(t, b) for b in range(len(described))] for t in range(len(described))]
    )
    assert torch.equal(found, table[rows[:, 1:], rows[:, :-1]])
    written = "abc é日 dea"
    assert known.decode(known.encode(written)) == written
    tokens = torch.tensor(known.encode(written))
    # The mark that SentencePiece puts before a text counts as a space.
    first = len(described[int(tokens[0])].piece.removeprefix("▁").encode())
    assert first + int(known.bytes_of(tokens[1:], tokens[:-1]).sum()) == len(written.encode())


def put(name, data):
    return lambda folder, whole: (folder / name).write_bytes(data)


def headed(index, value):
    """Return what writes a shard with another number in its header."""

    def spoil(folder, whole):
        header = np.frombuffer(whole[:HEADER_BYTES], "<i4").copy()
        header[index] = value
        (folder / SHARD).write_bytes(header.tobytes() + whole[HEADER_BYTES:])

    return spoil


SHARD = "fineweb_train_1.bin"
DAMAGE = [
    ("fineweb", headed(0, 1), "is not a token shard"),
    ("fineweb", headed(1, 2), "is not a token shard"),
    ("fineweb", headed(2, 999), "is damaged"),
    ("fineweb", lambda folder, whole: (folder / SHARD).write_bytes(whole[:100]), "is damaged"),
    ("fineweb", lambda folder, _: (folder / "fineweb_val_0.bin").unlink(), "holds no fineweb_val"),
    ("bins", put("train.bin", b"abc"), "no whole number"),
    ("bins", lambda folder, _: (folder / "train.bin").unlink(), "is missing"),
    ("bins", lambda folder, whole: (folder / "train.bin").write_bytes(whole), "dataset=fineweb"),
    ("text", put("a.txt", b"\xe9"), "a.txt cannot be read .*: put UTF-8"),
    ("text", lambda folder, _: (folder / "a.txt").unlink(), "holds no \\*.txt"),
]


@pytest.mark.parametrize(("dataset", "spoil", "message"), DAMAGE)
def test_damaged_files_are_one_line(dataset, spoil, message, tmp_path):
    task = made(tmp_path, dataset)
    spoil(tmp_path / "own", (tmp_path / "own" / SHARD).read_bytes())
    task.parts = {}
    with one_line(message):
        task.setup()


def test_settings_that_do_not_fit_the_files_are_one_line(tmp_path):
    for dataset, keys, message in (
        ("text", {"vocab_size": 65}, "set task.vocab_size=256"),
        ("text", {"tokenizer": "none.model"}, "none.model is missing"),
        ("text", {"tokenizer": "own/a.txt"}, "is not a SentencePiece model"),
        ("bins", {"length": 75}, " tokens, no more than task.length=75"),
        ("shakespeare", {"folder": "text"}, "put tinyshakespeare/input.txt there"),
    ):
        with pytest.raises(ValueError, match=message):
            made(tmp_path, dataset, **keys)
    with pytest.raises(ValueError, match=r"token \d+, above task.vocab_size"):
        made(tmp_path, "bins", vocab_size=20)  # in val.bin
    task = made(tmp_path, "bins")
    (tmp_path / "own" / "train.bin").write_bytes(np.full(500, 40, "<u2").tobytes())
    keys = {"dataset": "bins", "length": 8, "steps": 5, "vocab_size": 32, "folder": "own"}
    task = helpers.make("lm", tmp_path, **keys)
    for read in (task.inspect, lambda: next(task.train_batches(0, 4))):
        with pytest.raises(ValueError, match=r"token 40, above task\.vocab_size"):
            read()


def test_a_text_of_256_characters_is_no_text_of_bytes():
    characters = [chr(300 + i).encode() for i in range(256)]
    vocabulary = reader.of_pieces(characters)
    text = "".join(chr(300 + i) for i in (3, 255, 0))
    assert vocabulary.encode(text) == [3, 255, 0] and vocabulary.decode([3, 255, 0]) == text
    assert reader.of_pieces(reader.BYTES).encode("\u00e9") == [0xC3, 0xA9]


def test_shakespeare_is_checked_and_cut_as_in_nanogpt(tmp_path, capsys):
    path = tmp_path / lm.SHAKESPEARE
    path.parent.mkdir()
    path.write_text("so shaken as we are, so wan with care,\n" * 10)
    size = len(set(path.read_text()))
    keys = {"length": 8, "vocab_size": size}
    with pytest.raises(ValueError, match="is not as published"):
        helpers.make("lm", tmp_path, **keys)
    words = ["+exp=shakespeare", f"data.root={tmp_path}", "check_data=true"]
    for verify, line in (("refuse", "is not as published"), ("warn", "has 39 tokens")):
        assert plan.main([*words, f"data.verify={verify}"]) == 2
        assert line in capsys.readouterr().err
    task = helpers.make("lm", tmp_path, data={"verify": "warn"}, **keys)
    assert task.compared.published is False
    assert [len(task.parts[part]) for part in ("train", "test")] == [351, 39]
    assert task.vocabulary is not None
    model = Bigram(size)
    shown = task.examples(model, "test", 3)
    assert [s.heading for s in shown] == [s.heading for s in task.examples(model, "test", 3)]
    assert all(len(s.pictures[0].caption) == lm.CONTINUED for s in shown)
