"""A run that is stopped after any of its steps resumes to the bit, at the same number of ranks."""

import pytest
from processes import OVERRIDES, STEPS, TIMEOUT, differences, folder_in, free_port, torchrun

pytestmark = pytest.mark.fault


SHORTER, SHORTER_STEPS = ("epochs=2", "optim.milestones=[1]"), 8
SEARCH, SEARCH_STEPS = ("sharing.groups=learned", "sharing.num_groups=2"), 4
LEARNED = (*SEARCH, "sharing.search.epochs=1", *SHORTER)
ALL_AT_ONCE = ("data.workers=2", "trainer.grad_accum_steps=2", "optim.ema_decay=0.9", *SHORTER)
GRADUAL = ("pruning.schedule=gradual", "pruning.start=0.2", "pruning.times=2")
PRUNED = ("pruning=hrank", *GRADUAL, "pruning.batches=2", *SHORTER)
SELDOM = ("trainer.log_every=5", "trainer.checkpoint_every=3")


@pytest.mark.parametrize(
    ("overrides", "stopped"),
    [
        ((), range(1, STEPS)),
        (ALL_AT_ONCE, range(1, SHORTER_STEPS)),
        (("optim.name=adamw", "budget=dense", *SELDOM, *SHORTER), range(1, SHORTER_STEPS)),
        (("optim.name=adamax", "optim.clip_norm=2", *SELDOM, *SHORTER), (3, 4)),
        (("precision=fp16", *SHORTER), (3, 4)),
        (PRUNED, range(1, SHORTER_STEPS)),
        (LEARNED, (1, SEARCH_STEPS - 1, SEARCH_STEPS, SEARCH_STEPS + 1, SEARCH_STEPS + 6)),
    ],
    ids=[
        "plain",
        "workers, accumulation, averaged weights",
        "adamw, seldom",
        "adamax",
        "fp16",
        "pruned",
        "learned",
    ],
)
def test_stopped_after_each_step(trainings, straight, overrides, stopped):
    steps = [*stopped]
    ended = trainings.call("inside:stop_after_each", [*OVERRIDES, *overrides], steps).wait(TIMEOUT)
    assert ended.code == 0, ended.err
    for step in steps:
        folder = folder_in(trainings.home / f"stopped-{step}")
        assert differences(folder, straight(*overrides)) == [], f"stopped after step {step}"


@pytest.mark.parametrize(
    ("overrides", "stopped"),
    [
        (("optim.ema_decay=0.9", "data.workers=2", *SHORTER), [*range(1, SHORTER_STEPS - 1)]),
        (("trainer.grad_accum_steps=2", "trainer.gradient_dtype=bf16", *SELDOM), [3, 7]),
        (PRUNED, [2, 3, 5]),
        (LEARNED, [2, 5, 9]),
    ],
    ids=["averaged weights, workers", "accumulation, bf16 gradients, seldom", "pruned", "learned"],
)
def test_two_ranks_stopped_after_the_steps(trainings, straight, overrides, stopped):
    # The signal reaches one rank after these; all stop one step later.
    ports = [free_port() for _ in range(2 * len(stopped))]
    runs = [
        trainings.call(
            "inside:stop_after_each",
            [*OVERRIDES, *overrides],
            stopped,
            ports,
            env=torchrun(rank, 2, 0),
        )
        for rank in range(2)
    ]
    ended = [run.wait(TIMEOUT) for run in runs]
    assert [each.code for each in ended] == [0, 0], ended[0].err + ended[1].err
    expected = straight(*overrides, ranks=2)
    for step in stopped:
        folder = folder_in(trainings.home / f"stopped-{step}")
        assert differences(folder, expected) == [], f"stopped after step {step}"
