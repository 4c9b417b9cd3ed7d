"""Track a run: `log.jsonl` always, Weights & Biases where it works.

The tables are made from the run's own files. W&B is a convenience: whatever it raises is a warning,
and the run goes on without it.
"""

import contextlib
import json
import logging
import os
import secrets
from pathlib import Path
from types import TracebackType
from typing import Any

from npas.config import Config, search_epochs, to_dict
from npas.training.state import SEARCH, TRAIN

log = logging.getLogger(__name__)

LOG_FILE = "log.jsonl"


class Tracker:
    """Write what a run logs, a dict of plain numbers a line, each with its "step".

    Lines of a search for groups say so: "stage": "search".
    """

    def __init__(
        self,
        config: Config,
        run_dir: Path,
        step: int,
        wandb_id: str | None,
        stage: str = TRAIN,
    ) -> None:
        """Go on after `step`, dropping later lines: those steps are about to be done again."""
        run_dir.mkdir(parents=True, exist_ok=True)
        self.stage = stage
        self.path = run_dir / LOG_FILE
        kept = self.path.with_suffix(".tmp")
        kept.write_bytes(b"".join(_lines_until(self.path, step, stage)))
        os.replace(kept, self.path)
        self.file = open(self.path, "a", buffering=1)  # noqa: SIM115 (open for the run's length)
        self.wandb_id = wandb_id or secrets.token_hex(4)
        self.wandb = _start_wandb(config, run_dir, self.wandb_id)

    def log(self, record: dict[str, Any]) -> None:
        """Write one line; a number that is not finite is written as null."""
        marked = record if self.stage == TRAIN else {"stage": self.stage, **record}
        self.file.write(json.dumps({k: _jsonable(v) for k, v in marked.items()}) + "\n")
        start = "" if self.stage == TRAIN else f"{self.stage}/"
        self._tell_wandb(lambda run: run.log({f"{start}{k}": v for k, v in record.items()}))

    def log_similarity(self, step: int, epoch: int, groups: list[dict[str, Any]]) -> None:
        """Write a line with the layer similarity matrices, as `Similarity.to_dict` has them."""
        record = {"step": step, "epoch": epoch, "similarity": groups}
        self.file.write(json.dumps(record) + "\n")
        self._tell_wandb(lambda run: run.log({"step": step, **_heat_maps(groups)}))

    def summarize(self, metrics: dict[str, Any]) -> None:
        """Tell W&B the run's final figures."""
        self._tell_wandb(lambda run: run.summary.update(metrics))

    def _tell_wandb(self, call: Any) -> None:
        if self.wandb is None:
            return
        try:
            call(self.wandb)
        except Exception as error:  # it may raise anything, and none of it is worth the run
            log.warning("wandb failed and is left out from here on: %s", _one_line(error))
            self.wandb = None

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.file.close()
        self._tell_wandb(lambda run: run.finish(exit_code=int(error is not None)))


def _start_wandb(config: Config, run_dir: Path, run_id: str) -> Any:
    """Start or continue the W&B run of this id; None where there is none."""
    mode: Any = os.environ.get("WANDB_MODE") or config.wandb.mode
    if mode == "disabled":
        return None
    try:
        import wandb

        run = wandb.init(
            mode=mode,
            project=config.wandb.project,
            entity=config.wandb.entity,
            group=config.wandb.group or config.exp,
            job_type="train",
            name=run_dir.name,
            tags=config.wandb.tags,
            config=to_dict(config),
            dir=run_dir,
            id=run_id,
            resume="allow" if mode == "online" else None,
            settings=wandb.Settings(silent=mode == "offline", console="off"),
        )
        # Steps are data, so that those done again after a resume are not dropped.
        run.define_metric("*", step_metric="step")
        if search_epochs(config):
            run.define_metric(f"{SEARCH}/*", step_metric=f"{SEARCH}/step")
        return run
    except Exception as error:  # no key, no network, a full disk, a version that changed
        log.warning("going on without wandb (wandb.mode=%s): %s", mode, _one_line(error))
        return None


def _heat_maps(groups: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the matrices as small grey images, one pixel a pair of layers."""
    import numpy as np
    import wandb

    return {
        f"lsm/{group['group']}": wandb.Image(
            np.nan_to_num(255 * np.array(group["matrix"], dtype=float)).astype(np.uint8)
        )
        for group in groups
    }


def _lines_until(path: Path, step: int, stage: str) -> list[bytes]:
    """Return the log's good lines up to a step; a kill or a full disk may have cut others short.

    Of a search that went before, all stay.
    """
    kept: list[bytes] = []
    if path.exists():
        for line in path.read_bytes().splitlines():
            # Whatever is none of ours.
            with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):
                record = json.loads(line)
                is_before = stage == TRAIN and record.get("stage") == SEARCH
                is_done = 0 < step >= record["step"] and record.get("stage", TRAIN) == stage
                if is_before or is_done:
                    kept.append(line + b"\n")
    return kept


def _jsonable(value: Any) -> Any:
    finite = not isinstance(value, float) or abs(value) < float("inf")
    return value if finite else None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
