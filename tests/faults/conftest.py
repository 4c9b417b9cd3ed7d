"""A process that forks trainings, and undisturbed runs, shared by all tests."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="session")
def forks():
    """Return the process that forks others."""
    from processes import Forks

    with Forks(paths=[HERE]) as found:
        yield found


@pytest.fixture
def trainings(forks, tmp_path):
    """Return a starter of trainings in this test's folder."""
    from processes import Trainings

    return Trainings(forks, tmp_path)


@pytest.fixture(scope="session")
def straight(forks, tmp_path_factory):
    """Return a function that trains undisturbed, once for each list of overrides: the run's folder.

    `ranks`: number of processes; `norm`: as in `inside.make`.
    """
    from processes import Trainings, folder_in

    done = {}

    def run(*overrides, ranks=1, norm=None):
        key = (overrides, ranks, norm)
        if key not in done:
            home = tmp_path_factory.mktemp("straight")
            starter, fault = Trainings(forks, home), {"norm": norm}
            if ranks == 1:
                ended = [starter.run(*overrides, fault=fault)]
            else:
                faults = dict.fromkeys(range(ranks), fault)
                ended = starter.run_ranks(ranks, *overrides, faults=faults)
            assert [each.code for each in ended] == [0] * ranks, ended[0].err
            done[key] = folder_in(home / "runs")
        return done[key]

    return run
