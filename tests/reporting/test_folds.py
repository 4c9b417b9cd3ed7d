"""The page of folded networks shows what the fold files hold."""

import json

import pytest

from npas.reporting import folds, tables


def test_the_committed_page_is_made_of_the_committed_files():
    root = tables.results_root() / "folds"
    text = folds.page(root)
    assert (root / "README.md").read_text(encoding="utf-8") == text
    assert text.count("folded.png") == len(list(root.rglob("fold.json"))) > 0


def test_every_committed_fold_is_sound():
    for path in (tables.results_root() / "folds").rglob("fold.json"):
        fold = json.loads(path.read_text(encoding="utf-8"))
        assert fold["layers"] <= fold["layers_before"]
        assert fold["parameters"] <= fold["parameters_before"]
        assert fold["outputs_differ_by"] < 1e-4
        assert fold["git"]["dirty"] is False
        assert fold["metrics"]["folded"][fold["metric"]] is not None


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "fold.json").write_text("{}")
    message = r"fold.json cannot be read .*: it must be what npas-fold writes"
    with pytest.raises(ValueError, match=message):
        folds.page(tmp_path)
