"""Every table can be run, and the committed ones equal what the results give."""

import re
from pathlib import Path

import pytest

from npas.config import DENSE, config_hash, run_dir
from npas.reporting import definitions, results, tables
from npas.reporting.compose import compose, planned_count, planned_flops
from npas.sharing.budget import parse_budget

REPOSITORY = Path(__file__).resolve().parents[2]


def test_an_unknown_table_is_answered_with_a_near_name():
    with pytest.raises(ValueError, match="there is no table 'digit'; did you mean digits"):
        definitions.table("digit")


@pytest.mark.slow
@pytest.mark.parametrize("exp", ["digits", "cifar10_small"])
def test_the_narrower_network_is_the_widest_that_the_budget_allows(exp):
    overrides = f"+exp={exp}", "budget=dense"
    rows = [row for row in definitions.table("digits").rows if row.label.startswith("narrower")]
    assert len(rows) == 4
    for row in rows:
        budget, width = row.label.rpartition(" ")[2], float(row.overrides[-1].partition("=")[2])
        allowed = parse_budget(budget).allowed(planned_count(*overrides))
        widths = (width, width + 1 / 64)
        used, more = (planned_count(*overrides, f"model.width={each}") for each in widths)
        # The comparison is a fair one only if little is left over.
        assert 0.93 * allowed < used <= allowed < more
    narrow = compose("+exp=digits_narrow").model.width
    assert f"model.width={narrow}" == rows[1].overrides[-1]


def is_as_committed(name):
    table = definitions.table(name)
    cells = tables.load(table, REPOSITORY / "results" / "runs")  # composes and checks each row
    page = REPOSITORY / "results" / "tables" / f"{name}.md"
    assert page.read_text(encoding="utf-8") == tables.markdown(table, cells)
    assert table.name == name
    assert len({(cell.row.section, cell.row.label) for cell in cells}) == len(cells)
    assert any(
        compose(*row.overrides).budget == DENSE for row in table.rows if row.overrides is not None
    )


@pytest.mark.parametrize("name", [name for name in definitions.names() if name != "hrank"])
@pytest.mark.slow
def test_a_committed_table_is_what_the_committed_results_give(name):
    is_as_committed(name)


def test_committed_results_came_from_finished_runs_of_the_real_data():
    found = results.collect(REPOSITORY / "results" / "runs")
    assert list(found) == sorted(REPOSITORY.glob("results/runs/*/*/result.json"))  # all are whole
    for path, result in found.items():
        assert result.status in ("done", "diverged"), path
        assert result.dataset.source == "real", path
        assert path.parent.parent.name == result.exp, path


def header_words(exp):
    """Return the overrides of an experiment's own command, without what the reader fills in."""
    text = (REPOSITORY / "configs" / "exp" / f"{exp}.yaml").read_text(encoding="utf-8")
    (command,) = re.findall("^# Command: npas-train (.*)$", text, re.MULTILINE)
    return [word for word in command.split() if not re.search(r"=[A-Z]+$", word)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["imagenet", "perceiver", "squad", "grounding", "retrieval"])
def test_what_an_experiments_own_command_trains_fills_its_row(name):
    for row in definitions.table(name).rows:
        # The budget, the run to start from and CITE's layers are the row's to say.
        said = ("budget=", "sharing.init=", "model.embeddings=")
        overrides = [word for word in row.overrides if not word.startswith(said)]
        machine = ("budget=", "trainer.grad_accum_steps=")  # a row takes runs in any parts
        own = [word for word in header_words(overrides[0][5:]) if not word.startswith(machine)]
        assert config_hash(compose(*overrides)) == config_hash(compose(*own)), row.label


def test_the_shared_bert_starts_where_its_pre_training_ends():
    (init,) = {
        word.removeprefix("sharing.init=")
        for row in definitions.table("squad").rows
        for word in row.overrides or ()
        if word.startswith("sharing.init=")
    }
    assert init == str(run_dir(compose(*header_words("ssn_mlm"))))


@pytest.mark.slow
def test_pruned_networks_are_no_larger_than_hranks():
    is_as_committed("hrank")  # by the same counts, which take seconds
    rows = definitions.table("hrank").rows
    for pruned, shared, both in zip(rows[::3], rows[1::3], rows[2::3], strict=True):
        figure = pruned.published
        count, flops = planned_count(*pruned.overrides), planned_flops(*pruned.overrides)
        assert 0.85 * figure.params < count / 1e6 <= figure.params, pruned.section
        assert 0.85 * figure.mflops < flops / 2e6 <= figure.mflops, pruned.section
        assert planned_count(*shared.overrides) == figure.params * 1e6
        assert planned_flops(*both.overrides) == flops < planned_flops(*shared.overrides)
        masks = planned_count(*both.overrides) - figure.params * 1e6 / 2
        assert 0 < masks < 150  # a bit a filter
