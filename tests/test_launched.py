"""The environment says which process this is, whoever started it."""

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
    ],
)
def test_a_process_knows_its_place(environ: dict[str, str], place: Place) -> None:
    assert processes.place(environ) == place


def test_nodes_are_counted() -> None:
    assert processes.place(TORCHRUN).nodes == 2 and Place().nodes == 1


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"WORLD_SIZE": "4"}, "WORLD_SIZE=4 is set but RANK is not"),
        ({**TORCHRUN, "RANK": "x"}, "RANK=x is no number"),
    ],
)
def test_half_an_environment_is_refused(environ: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        processes.place(environ)


def test_sruns_processes_meet_on_the_first_host() -> None:
    environ = dict(SRUN)
    processes.meet(environ)
    assert environ["MASTER_ADDR"] == "gpu07"
    assert 20000 <= int(environ["MASTER_PORT"]) < 40000
    assert processes.place({k: v for k, v in environ.items() if "SLURM" not in k}) == Place(
        3, 4, 1, 2
    )
    other = {**SRUN, "SLURM_STEP_ID": "1"}
    processes.meet(other)
    assert other["MASTER_PORT"] != environ["MASTER_PORT"]


def test_what_is_set_is_left_as_it_is() -> None:
    for environ in ({}, TORCHRUN):
        changed = dict(environ)
        processes.meet(changed)
        assert changed == environ


@pytest.mark.parametrize(
    ("nodes", "host"), [("gpu[07-09,12],login", "gpu07"), ("a,b", "a"), ("n1", "n1")]
)
def test_the_first_host_of_a_list(nodes: str, host: str) -> None:
    assert processes.first_host(nodes) == host
