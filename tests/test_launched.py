"""Rank and world size are read from any launcher's environment."""

import pytest

from npas.utils import processes
from npas.utils.processes import Place

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
SRUN = {
    "SLURM_PROCID": "3",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "gpu[07-09,12]",
    "SLURM_JOB_ID": "123456",
    "SLURM_STEP_ID": "0",
}


@pytest.mark.parametrize(
    ("environ", "place"),
    [
        ({}, Place()),
        (TORCHRUN, Place(3, 4, 1, 2)),
        (SRUN, Place(3, 4, 1, 2, by_slurm=True)),
        ({**TORCHRUN, **SRUN, "RANK": "2"}, Place(2, 4, 1, 2)),  # torchrun within srun
        ({"WORLD_SIZE": "1"}, Place()),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, Place()),  # a batch script, not yet srun
        ({"WORLD_SIZE": "4"}, "WORLD_SIZE=4 is set but RANK is not"),
        ({**TORCHRUN, "RANK": "x"}, "RANK=x is not a number"),
    ],
)
def test_a_process_knows_its_place(environ, place):
    if isinstance(place, str):
        with pytest.raises(ValueError, match=place):
            processes.place(environ)
    else:
        assert processes.place(environ) == place
        assert place.nodes == (2 if place.world == 4 else 1)


def test_sruns_processes_meet_on_the_first_host():
    environ, other = dict(SRUN), {**SRUN, "SLURM_STEP_ID": "1", "SLURM_STEP_NODELIST": "a,b"}
    processes.set_torchrun_variables(environ)
    processes.set_torchrun_variables(other)
    assert (environ["MASTER_ADDR"], other["MASTER_ADDR"]) == ("gpu07", "a")
    assert 20000 <= int(environ["MASTER_PORT"]) < 40000
    assert other["MASTER_PORT"] != environ["MASTER_PORT"]
    found = processes.place({k: v for k, v in environ.items() if "SLURM" not in k})
    assert found == Place(3, 4, 1, 2)
    for started in ({}, TORCHRUN):  # what is set is left as it is
        changed = dict(started)
        processes.set_torchrun_variables(changed)
        assert changed == started
