"""Train a network on a task: epochs of steps, each followed by validation and a checkpoint.

    outcome = train(build(config), run_dir(config))

The test set is read once, at the end, with the last weights and the best on held-out data, if any.
A search for groups (`search.py`) takes the same steps, with the whole schedule in its own epochs,
and evaluates nothing. With `eval_only` there are no epochs. Only logging and saving wait for the
device: the optimizer's kernel skips a step whose loss or gradient is not finite, and the run stops
as "diverged" when it next logs. A signal stops the run after the current step, as "preempted".
"""

from contextlib import nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from npas.sharing.trained.layer_similarity import recurrence_reward
from npas.tasks.base import Batch, Learner
from npas.training import seeding
from npas.training.averaging import renew_statistics
from npas.training.distributed import StopVote, check_all_used, wrap
from npas.training.experiment import Experiment, check_parts
from npas.training.grouping import TRAIN
from npas.training.journal import NO_METRICS, Journal, Outcome
from npas.training.meter import Diverged
from npas.training.metrics import final_metrics, validate
from npas.training.optim import build_optimizer, clip, learning_rate
from npas.training.precision import Precision
from npas.training.pruning import is_pruned, prune
from npas.training.state import TrainState
from npas.utils import signals


def train(experiment: Experiment, run_dir: Path) -> Outcome:
    """Train `experiment.model` in place, from the newest checkpoint in `run_dir` if any."""
    config, task, model = experiment.config, experiment.task, experiment.model
    process, epochs = experiment.process, experiment.epochs
    learner, reward = experiment.learner, experiment.recurrence_weight
    precision = experiment.precision
    measures = experiment.stage == TRAIN
    check_parts(experiment)
    task.setup()
    steps_per_epoch = task.steps_per_epoch(config.batch_size)
    optimizer = build_optimizer(model, config.optim)
    seeding.seed_torch(config.seed, "dropout", process.rank)
    state = TrainState(experiment, optimizer, run_dir)
    state.resume()
    if config.compile:
        model.compile()  # in place: names in the state dict do not change
    network = wrap(model, process, config)

    progress, meter, resumed_at = state.progress, state.meter, state.progress.step
    every, save_every = config.trainer.log_every, config.trainer.checkpoint_every
    most_s = config.trainer.max_seconds if measures else None
    journal = Journal(state, steps_per_epoch, most_s)
    vote = StopVote(process, progress.elapsed_s, state.elapsed_s)
    all_steps = config.epochs * steps_per_epoch  # of the whole schedule

    def is_over() -> bool:  # by the clock; whatever is left to prune gets one step more
        return vote.is_over(most_s) and is_pruned(experiment, progress)

    with journal, vote, signals.deferred():
        try:
            if progress.step == 0:
                journal.compare_layers()
            while progress.epoch < epochs and not is_over():
                network.train()
                done = progress.step - progress.epoch * steps_per_epoch
                for batch in experiment.batches(progress.epoch, done, config.data.workers):
                    at_step = progress.step * config.epochs // epochs
                    if most_s is not None:
                        by_clock = int(all_steps * vote.elapsed_s / most_s)
                        at_step = max(at_step, min(by_clock, all_steps - 1))
                    prune(experiment, progress, at_step, all_steps)
                    rate = learning_rate(config, at_step, steps_per_epoch)
                    progress.step += 1
                    parts = batch.parts(config.trainer.grad_accum_steps)
                    finite, sums, norms_N = gradient(
                        learner, network, parts, optimizer, precision, reward
                    )
                    if process.world > 1 and progress.step == resumed_at + 1:
                        check_all_used(model)
                    went_wrong = meter.add(progress.step, batch.size, finite, sums, norms_N)
                    clip(optimizer, config.optim.clip_norm, norms_N)
                    update(optimizer, rate, precision, went_wrong, norms_N)
                    state.average()
                    journal.bar.advance()
                    ends_epoch = progress.step % steps_per_epoch == 0
                    if ends_epoch or progress.step % every == 0:
                        journal.report({"lr": rate, **meter.read()})
                        meter.check()
                    stop = vote.should_stop()
                    if stop or (save_every and progress.step % save_every == 0 and not ends_epoch):
                        state.save()
                    if stop:
                        return journal.outcome("preempted")
                    if is_over():
                        break
                renew_statistics(experiment, state.averaged, progress.epoch)
                progress.epoch = progress.step // steps_per_epoch  # unchanged if time ran out
                if task.has_validation and measures:
                    journal.report(validate(state, task, steps_per_epoch))
                journal.compare_layers()
                state.save()
                if vote.should_stop():  # validation may take long
                    return journal.outcome("preempted")
            if not epochs:  # `eval_only`
                if task.has_validation:
                    journal.report(validate(state, task, steps_per_epoch))
                state.save()
            metrics = final_metrics(state, task) if measures else NO_METRICS
        except Diverged as reason:
            return journal.outcome("diverged", reason=reason)
        return journal.outcome("done", metrics)


def gradient(
    task: Learner, network: nn.Module, parts: list[Batch], optimizer: Optimizer,
    precision: Precision, regularizer: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor], Tensor]:  # fmt: skip
    """Accumulate the gradient of a batch's loss in `.grad`, over its parts and all processes.

    Returns whether loss and gradient are finite, sums to log, and the norm of each gradient.
    `regularizer` weighs the recurrence reward; the logged loss is the task's alone.
    """
    shared_out = network if isinstance(network, DistributedDataParallel) else None
    model: nn.Module = shared_out.module if shared_out else network
    sums: dict[str, Tensor] = {}
    finite, size = None, sum(part.size for part in parts)
    world = dist.get_world_size(shared_out.process_group) if shared_out else 1
    for part, weight in zip(parts, task.part_weights(parts, world), strict=True):
        is_last = part is parts[-1]  # its backward averages over the processes
        with shared_out.no_sync() if shared_out and not is_last else nullcontext():
            with precision.autocast():
                loss, found = task.loss(network, part)
            found = {"loss": loss.detach() * weight * size, **found}
            finite = loss.isfinite() if finite is None else finite & loss.isfinite()
            if regularizer:
                reward = recurrence_reward(model)
                loss = loss - regularizer * reward
                found["recurrence"] = reward.detach() * part.size
            loss = loss * weight
            (loss if precision.scaler is None else precision.scaler.scale(loss)).backward()
        sums = {key: sums.get(key, 0) + value for key, value in found.items()}
    assert finite is not None
    if precision.scaler is not None:
        precision.scaler.unscale_(optimizer)
    trained = [p for p in model.parameters() if p.requires_grad]
    gradients = [p.new_zeros(()) if p.grad is None else p.grad for p in trained]
    norms_N = torch.stack(torch._foreach_norm(gradients))
    norm = torch.linalg.vector_norm(norms_N)
    # With fp16, a gradient that is not finite lowers the loss scale, as long as it can be lowered.
    finite &= norm.isfinite() | precision.can_scale_less()
    return finite, {**sums, "grad_norm": norm * size}, norms_N


def update(
    optimizer: Optimizer, rate: float, precision: Precision, went_wrong: Tensor, norms_N: Tensor
) -> None:
    """Take an optimizer step, unless `went_wrong` is 1.0 (on the device).

    A step whose gradient is not finite is skipped too: fp16 then lowers its loss scale.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("factor", 1.0)
    overflow = (~norms_N.isfinite().all()).float()
    # The fused kernel reads this, as it does from a GradScaler, and writes nothing if it is 1.
    optimizer.found_inf = torch.maximum(went_wrong, overflow)  # type: ignore[attr-defined]
    optimizer.step()
    if precision.scaler is not None:
        precision.scaler.update()
    optimizer.zero_grad()
