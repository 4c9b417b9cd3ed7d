"""Several processes train one run: one folder, the same figures, the same end for all of them."""

import signal

import pytest
from processes import (
    OVERRIDES,
    PREEMPTED,
    TIMEOUT,
    differences,
    folder_in,
    free_port,
    logged,
    newest,
)

from npas.reporting import results

pytestmark = pytest.mark.fault


# Without dropout, whose draws each rank makes for itself, as every parallel training does.
SAME = ("model.dropout=0", "epochs=2", "optim.milestones=[1]")
FAILING = {"step": 3, "raises": "this rank has failed"}
SOON = 60.0  # seconds within which the others of a rank that fails are to be gone


def check_codes(ended, code=0):
    """Check how all ended, and return what they said on stderr."""
    message = "".join(each.err for each in ended)
    assert [each.code for each in ended] == [code] * len(ended), message
    return message


def furthest(one, other):
    """Return the greatest difference of two runs' weights, of the network's greatest weight."""
    ours, theirs = newest(one).tensors("model"), newest(other).tensors("model")
    assert ours.keys() == theirs.keys()
    scale = max(float(tensor.abs().max()) for tensor in ours.values())
    return max(float((ours[k].double() - theirs[k].double()).abs().max()) for k in ours) / scale


def steps(folder):
    return [line["step"] for line in logged(folder)]


def losses(folder):
    return [line["train/loss"] for line in logged(folder) if "train/loss" in line]


MUON = ("optim.name=muon", "optim.lr=0.02", "optim.muon.vector_lr=0.01")


@pytest.mark.parametrize(
    ("ranks", "overrides", "optimizer"),
    [
        (1, ("trainer.grad_accum_steps=2",), ()),
        (2, (), ()),
        (3, (), ()),
        (2, ("trainer.grad_accum_steps=2",), ()),
        (2, (), MUON),
        (2, (), (*MUON, "optim.muon.bank=adam")),
    ],
    ids=[
        "accumulation", "two ranks", "three ranks", "two ranks, accumulation",
        "two ranks, Muon", "two ranks, Muon, banks by Adam",
    ],
)  # fmt: skip
def test_parts_of_a_batch_add_up_to_the_batch(straight, ranks, overrides, optimizer):
    # Where no statistics of a batch are learned, as batch norm does of each part.
    alone = straight(*SAME, *optimizer, norm="group")
    shared_out = straight(*SAME, *overrides, *optimizer, ranks=ranks, norm="group")
    assert furthest(alone, shared_out) < 1e-4
    assert steps(alone) == steps(shared_out)
    assert losses(alone) == pytest.approx(losses(shared_out), rel=1e-4)


def test_ranks_export_one_artifact_and_measure_what_it_holds(trainings):
    check_codes(trainings.run_ranks(2, *SAME, "budget=12KB"))
    found = results.read(folder_in(trainings.home / "runs"))
    assert found.artifact is not None and found.artifact.metrics is not None
    assert found.artifact.bytes <= found.artifact.bytes_before_compression <= 12_000
    over = trainings.run_ranks(2, *SAME, "budget=12KB", "artifact.expected_ratio=4", "seed=1")
    assert "more than the 12KB" in check_codes(over, 1)


def test_ranks_leave_one_folder_one_log_and_one_voice(trainings):
    first, second = trainings.run_ranks(2, *SAME)
    check_codes([first, second])
    assert (second.out, second.err) == ("", "")
    assert steps(trainings.folder) == [1, 2, 3, 4, 4, 5, 6, 7, 8, 8]
    found = trainings.result().parallel
    assert found is not None and (found.ranks, found.nodes, found.grad_accum_steps) == (2, 1, 1)
    assert "312 = 2 " in first.out  # the arithmetic of the batch
    files = {"checkpoints", "config.yaml", "log.jsonl", "result.json"}
    assert {path.name for path in trainings.folder.iterdir()} == files


def test_the_same_weights_measure_the_same_on_any_number_of_ranks(trainings, straight):
    # Each goes on from a training's last checkpoint, where all that is left to do is to measure.
    done = straight(*SAME)
    for ranks in (1, 2, 3):
        root = trainings.home / f"measured-by-{ranks}"
        ended = trainings.run_ranks(ranks, *SAME, f"resume={done}", f"run_root={root}")
        message = check_codes(ended)
        assert ("of another number of processes" in message and "not bit-identical" in message) == (
            ranks > 1
        )
        assert results.read(folder_in(root)).metrics == results.read(done).metrics


def test_a_rank_that_fails_ends_the_others_soon_and_says_why(trainings):
    first, second = trainings.start_ranks(2, faults={1: FAILING})
    ended = second.wait(SOON)
    assert ended.code == 1
    assert "Traceback" in ended.err and "this rank has failed" in ended.err
    # torchrun would end it; it need not wait for that.
    assert first.wait(SOON).code == 1
    found = trainings.result()
    assert found.status == "failed" and "this rank has failed" in str(found.error)
    check_codes(trainings.run_ranks(2))  # the same command goes on


def test_a_rank_that_is_killed_ends_the_others_soon(trainings):
    killed = {"step": 3, "signals": [int(signal.SIGKILL)]}
    first, second = trainings.start_ranks(2, faults={1: killed})
    assert second.wait(TIMEOUT).code == 128 + signal.SIGKILL
    assert first.wait(SOON).code == 1
    assert trainings.result().status == "failed"


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (("batch_size=313",), ["batch_size=313", "2 ranks", "312"]),
        (("-m", "seed=0,1"), ["torchrun"]),
    ],
    ids=["a batch that does not divide", "a sweep inside torchrun"],
)
def test_what_ranks_cannot_do_is_refused_with_the_way_to_do_it(trainings, overrides, says):
    message = check_codes(trainings.run_ranks(2, *overrides), 2)
    assert all(word in message for word in says)
    assert "Traceback" not in message and not trainings.root.exists()


def test_srun_starts_ranks_too(trainings, straight):
    # What Slurm sets for two tasks of a step on one node, of a batch job that has more of them.
    slurm = {
        "SLURM_JOB_ID": str(free_port()),  # from which follows where they meet
        "SLURM_STEP_ID": "0",
        "SLURM_NTASKS": "4",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NUM_NODES": "1",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NODEID": "0",
    }
    runs = [
        trainings.start(*SAME, env=slurm | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)})
        for rank in range(2)
    ]
    check_codes([run.wait(TIMEOUT) for run in runs])
    assert differences(trainings.folder, straight(*SAME, ranks=2)) == []


def test_a_signal_to_all_ranks_and_their_data_workers(trainings, straight):
    overrides = (*SAME, "data.workers=2")
    fault = {"step": 3, "signals": [int(signal.SIGTERM)], "group": True}
    ended = trainings.run_ranks(2, *overrides, faults={0: fault, 1: fault})
    check_codes(ended, PREEMPTED)
    found = trainings.result()
    assert found.status == "preempted"
    assert newest(trainings.folder).state["progress"]["step"] == found.steps
    trainings.check_ended(straight(*overrides, ranks=2), *overrides, ranks=2)


def test_torchrun_itself(trainings, straight):
    command = ("python", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    run = trainings.execute(*command, "-m", "npas.cli.train", *OVERRIDES, *SAME)
    ended = run.wait(TIMEOUT)
    assert ended.code == 0, ended.err
    assert differences(trainings.folder, straight(*SAME, ranks=2)) == []
