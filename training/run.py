"""One run while it trains: its model, optimisers, data, probes and folder, and what it writes."""

import io
import json
import math
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from data.dataset import prepare
from errors import Interrupted, UserError
from files import own_file, write_file
from model.gpt import GPT
from model.size import size
from training import checkpoint
from training.clock import Clock
from training.config import RunConfig, to_toml, tree
from training.contents import intact_summary, read_records, read_state, read_windows, seal
from training.ddp import ONE_PROCESS, Process
from training.device import environment, keep_memory, make_scaler, pick_device, pick_precision, speed_figures
from training.evaluate import Score
from training.folder import open_run
from training.limits import check_available, check_context, check_same_everywhere, warn_of_repetition
from training.metrics import Metrics, strict_json
from training.optim import build_optimizers, lr_factor
from training.probes.probes import Probes
from training.progress import Display
from training.step import compile_loss
from training.summary import sample_of, summary_of
from training.wandb_mirror import WandbMirror

# What a run has before its first checkpoint.
FRESH = {"step": 0, "skipped": 0, "time": 0.0, "train_seconds": 0.0, "wandb_id": None, "wandb_best": None}


class Run:
    """One run. Use it as a context, `open` it, and train it if `summary` is None then.

    With `shared` it is one of several runs in this process: what it prints goes to log.txt in its folder.
    With `stacked` its steps are computed together with those of others, which is part of its environment.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        process: Process = ONE_PROCESS,
        shared: bool = False,
        stacked: bool = False,
    ):
        self.config, self.folder, self.process, self.stacked = config, folder, process, stacked
        self.summary: dict[str, Any] | None = None
        self.failed = False
        self.start = 0  # the step that it starts at
        self.log: io.TextIOWrapper | None = None
        self._resources = ExitStack()  # the lock of the folder, the progress bar and the wandb run
        if shared:
            folder.mkdir(parents=True, exist_ok=True)
            self.log = (folder / "log.txt").open("a", encoding="utf-8", buffering=1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.failed = self.failed or kind is not None
        self.close()

    def close(self) -> None:
        """Release the folder and end the wandb run, as failed if the run has."""
        self._resources.close()
        if self.log and not self.log.closed:
            self.log.close()

    @contextmanager
    def contained(self) -> Iterator[None]:
        """Let a fault inside end this run alone, if it is one of several: log.txt says why, and the others go on."""
        if self.log is None:
            yield
            return
        with redirect_stdout(self.log), redirect_stderr(self.log):
            try:
                yield
                return
            except (UserError, FloatingPointError) as error:
                print(error)
            except Exception:
                traceback.print_exc()
        self.failed = True
        self.close()

    def open(self, patience: float = 0.0) -> None:
        """Lock the folder, prepare the data, and make the network, as new or as in the newest checkpoint.

        A run that has finished before gets its `summary` and nothing else.

        Raises:
            UserError: the folder, the data or the checkpoint do not fit the config.
        """
        # A finished run can be read on a machine that could not train it.
        if not intact_summary(self.folder):
            check_available(self.config)
        self.summary = self.process.first(
            lambda: self._resources.enter_context(open_run(self.folder, self.config, patience))
        )
        if self.summary:
            return
        self.data = prepare(self.config.data, self.config.train.seed)
        check_context(self.config, self.data)
        warn_of_repetition(self.config, self.data)
        check_same_everywhere(self.config, self.data, self.process)
        path = self.folder / "config.toml"
        if self.process.main and not path.exists():
            write_file(path, to_toml(self.config))
        self._build()
        self._start()

    def _build(self) -> None:
        """Make model, optimisers and probes with their initial values."""
        c = self.config.train
        keep_memory()
        if c.threads:
            torch.set_num_threads(c.threads)
        self.device = pick_device(c.device)
        self.precision = pick_precision(c.precision, self.device)
        if self.stacked and self.precision == "fp16":
            self.precision = "fp32"  # each run of a stack would need a scale of its own
        self.scaler = make_scaler(self.precision, self.device)
        self.environment = environment(self.device, self.precision, self.process.size, c.compile, self.stacked)
        n_vocab = self.data.tokenizer.n_vocab
        self.flops_per_token = size(self.config.model, n_vocab).flops_per_token
        # Each matrix has a random stream of its own. This seed is for activations that draw numbers.
        torch.manual_seed(c.seed)
        self.model = GPT(self.config.model, n_vocab, c.seed)
        if c.compile:
            compile_loss(self.model)
        self.model.to(self.device)
        self.ddp_model = self.process.wrap(self.model)  # the model itself, unless torchrun spreads the run
        self.optimizers = build_optimizers(self.model, c)
        # The probes follow the weights from their initial values, so they are made before a checkpoint is loaded.
        self.probes = Probes(self.model, self.optimizers, self.data.val, self.config.steps, c.probes)

    def _start(self) -> None:
        """Go on from the newest checkpoint, if there is one, and begin or continue what the run writes."""
        self.lines = b""  # of metrics.jsonl up to the start
        self.val_figures: dict[str, float | None] = {}  # the newest scores of the validation split
        self.val_windows = np.empty(0, np.float32)  # the loss of each window of the split
        state = self._load_checkpoint()
        self.resumed = state is not None
        state = state or FRESH
        self.start = state["step"]
        self.skipped = state["skipped"]
        self.clock = Clock(state["time"], state["train_seconds"])
        self.train_figures: dict[str, Any] = {}  # of the last training step, for the next record
        self.display = Display(self.folder.name, self.start, self.config.steps, self.resumed)
        mirror = WandbMirror.of_run(
            self.config, self.folder, state["wandb_id"], state["wandb_best"], self.display.say, self.device.type
        )
        self._resources.callback(lambda: mirror.close(self.failed))
        path = self.folder / "metrics.jsonl" if self.process.main else None
        self.metrics = Metrics(path, self.lines, mirror)
        # Last, since a progress bar hides the cursor, and nothing handles signals before the loop.
        self._resources.enter_context(self.display)

    def _load_checkpoint(self) -> dict[str, Any] | None:
        """Load the newest checkpoint, if there is one, and return its state.

        Raises:
            UserError: all are damaged, or it was trained on other data.
        """
        checkpoints = self.folder / "checkpoints"
        found = self.process.first(lambda: checkpoint.load_newest(checkpoints, self._load))
        if found is None:
            return None
        path, state = found
        # The first process has found the newest intact checkpoint, and the others take the same one.
        if not self.process.main:
            self._load(Path(path))
        # Each of these may change the order in which floating-point numbers are summed, or the numbers themselves.
        for key in ("threads", "ranks", "compiled", "stacked", "device_name", "torch", "precision"):
            was, now = state["environment"].get(key), self.environment[key]
            if was != now:
                print(f"warning: {key} was {was}, is {now}: not bitwise the same from now on")
        return state

    def _load(self, path: Path) -> tuple[Path, dict[str, Any]]:
        """Take over a verified checkpoint, and return it with its state."""
        state = read_state(path, self.config)
        if state["fingerprint"] != self.data.fingerprint:
            raise UserError("the checkpoint was trained on other data: the corpus or its tokens have changed since.")
        checkpoint.load_weights(path, self.model)
        tensors = checkpoint.load_training_state(path, self.model, self.optimizers, self.probes.tensors)
        self.probes.load(tensors)
        if scaler := state.get("scaler"):  # of a run in fp16
            with own_file(path / "state.json"):
                self.scaler.load_state_dict(scaler)
        # A run that resumes at its last step is not scored again, and its summary needs the scores.
        for record in read_records(path / "metrics.jsonl"):
            self.val_figures |= {name: value for name, value in record.items() if name.startswith("val/")}
        self.lines = (path / "metrics.jsonl").read_bytes()
        self.val_windows = read_windows(path / "val_windows.npy")
        return path, state

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        return self.config.train.lr * lr_factor(step, self.config.steps, self.config.train)

    def has_record_of(self, step: int) -> bool:
        """Whether the record of that step is in the folder: a checkpoint is written after the record of its step."""
        return self.resumed and step == self.start

    def record(self, step: int, score: Score | None, stopping: bool = False) -> None:
        """Write what is known after that many steps: a line of metrics.jsonl, then a checkpoint where one is due.

        A new metric that is measured now belongs here, one of the training step into `count_step`, and one inside the
        network into training/probes/probes.py. A table shows what training/summary.py returns, by a column in
        study/report/table.py. `score` is that of the validation split, where this step has one.
        """
        figures, self.train_figures = self.train_figures, {}
        if score:
            figures |= score.named("val")
            self.val_figures = strict_json(score.named("val"))
            self.val_windows = score.windows.astype(np.float32)
            if not np.isfinite(self.val_windows).all():  # such a run has no result whose noise could be estimated
                self.val_windows = self.val_windows[:0]
        figures |= self.probes.measure(step)
        if figures:
            position = {"step": step, "tokens": step * self.config.tokens_per_step, "time": self.clock.time}
            self.metrics.log(position | figures)
            self.display.update(position | figures)
        # The checkpoint comes after the record, of which it has a copy.
        due = step > 0 and step % self.config.train.checkpoint_every == 0
        if (due or stopping or step == self.config.steps) and self.process.main:
            # Asked before the checkpoint is written, since its state holds the lowest loss.
            lowest = score and self.metrics.mirror.is_lowest(score.loss)
            path = self._save(step)
            if lowest:
                self.metrics.mirror.upload(path)

    def _save(self, step: int) -> Path:
        mirror = self.metrics.mirror
        state = {
            "step": step,
            "time": self.clock.time,
            "train_seconds": self.clock.train_seconds,
            "skipped": self.skipped,
            "wandb_id": mirror.id,
            "wandb_best": mirror.best,
            "scaler": self.scaler.state_dict(),
            "config": tree(self.config),
            "environment": self.environment,
            "fingerprint": self.data.fingerprint,
        }
        return checkpoint.save(
            self.folder / "checkpoints",
            self.model,
            self.optimizers,
            self.probes.tensors,
            state,
            self.data.tokenizer,
            self.metrics.content(),
            self.val_windows,
            self.config.train.keep,
        )

    def count_step(self, step: int, loss: float, norm: float, seconds: float) -> None:
        """Keep the figures of a training step (from 0) for the next record: loss, norm of the gradient, and speed."""
        c = self.config.train
        self.clock.trained(self.config.tokens_per_step, seconds)
        self.skipped += not math.isfinite(loss + norm)
        if (step + 1) % c.log_every == 0 or step + 1 == self.config.steps:
            # They wait because scores and probes are measured after the update, and share one record with them.
            self.train_figures = {"train/loss": loss, "train/lr": self.learning_rate(step), "grad/norm": norm}
            if c.nonfinite == "skip" or self.scaler.is_enabled():
                self.train_figures["train/skipped"] = self.skipped
            self.train_figures |= speed_figures(self.clock.lap_speed(), self.flops_per_token, self.environment)

    def interrupt(self, step: int, signum: int) -> None:
        """End this run at a step because of a signal; its checkpoint is written."""
        message = f"{self.folder}: stopped at step {step} of {self.config.steps}; the same command resumes it"
        if self.log is None:
            raise Interrupted(signum, message)
        print(message)

    def finish(self, test: Score | None) -> None:
        """Write the summary of a run that has taken its last step; `test` is its score on the test split."""
        scores = self.val_figures | strict_json(test.named("test") if test else {})
        sample = self.process.first(lambda: sample_of(self.model, self.data))
        seconds = self.clock.train_seconds
        summary = summary_of(self.config, self.model, sample, self.data, scores, seconds, self.environment)
        # What is returned is what the file holds, so that a run that is read again is equal.
        summary = strict_json(summary | self.probes.summary())
        self.summary = summary = self.process.first(lambda: self._write_results(summary))
        self.metrics.finish({key: value for key, value in summary.items() if not isinstance(value, dict)})

    def _write_results(self, summary: dict[str, Any]) -> dict[str, Any]:
        """Write the windows, then the summary with the hashes of all that a report reads; return that summary."""
        # The summary comes last: a run that has one is finished.
        file = io.BytesIO()
        np.save(file, self.val_windows)
        write_file(self.folder / "val_windows.npy", file.getvalue())
        summary = seal(summary, self.folder)
        write_file(self.folder / "summary.json", json.dumps(summary, indent=1, ensure_ascii=False, allow_nan=False))
        return summary
