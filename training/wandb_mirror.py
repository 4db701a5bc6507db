"""Mirrors a run in wandb. It never blocks for long, never asks for input, and never ends the run."""

import math
import os
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from training.config import RunConfig, WandbConfig, tree

ID = re.compile(r"[\w-][\w.-]{0,63}")  # of a wandb run; it becomes part of a path
MODES = ("online", "offline", "shared", "disabled")  # of WANDB_MODE
FORMER_MODES = ("run", "dryrun")  # wandb still takes these for online and offline


class WandbMirror:
    """A wandb run, or nothing at all: the first failure turns it off with one warning.

    The environment variable WANDB_MODE decides, then `where.mode`. `auto` means online if the user is logged in, else
    offline, and `offline` says why. With `stats`, wandb also watches the machine and its GPUs. `about` goes to
    `wandb.init`: `job_type`, `config`, `tags`.
    """

    # Going online has failed in this process, so that further runs do not wait for it again.
    unreachable = False

    def __init__(
        self,
        where: WandbConfig,
        folder: Path,
        run_id: str | None,
        say: Callable[[str], None],
        stats: bool = False,
        **about: Any,
    ):
        self.run: Any = None
        self.id = run_id
        self.best: float | None = None  # val/loss of the best checkpoint
        self.uploads = where.artifact == "best"
        self.say = say
        self.offline = ""  # why the run is kept offline
        asked = os.environ.get("WANDB_MODE", "")
        if asked and asked not in MODES + FORMER_MODES:
            # wandb itself would answer with an error of several lines.
            say(f"warning: WANDB_MODE={asked}: wandb has no such mode, so it is off. Use {', '.join(MODES)}.")
        elif (asked or where.mode) != "disabled":
            with self._guarded():
                self._start(where, folder, asked, stats, about)

    @classmethod
    def of_run(
        cls,
        config: RunConfig,
        folder: Path,
        run_id: str | None,
        best: float | None,
        say: Callable[[str], None],
        device: str = "cpu",
    ) -> Self:
        """Mirror a training run. Checkpoints keep its `id` and `best`, so that a resumed run continues it."""
        tags = [config.model.activation[:64], config.data.corpus[:64]]
        job_type = "train"
        if _is_tuning_run(folder):
            job_type = "tune"
            tags.append("tune")
        stats = device != "cpu"  # many runs of a study share a CPU, and would all draw the same graphs
        mirror = cls(config.wandb, folder, run_id, say, stats, job_type=job_type, tags=tags, config=tree(config))
        mirror.best = best
        with mirror._guarded():
            if mirror.run is not None:
                if mirror.offline:
                    place = Path(mirror.run.dir).parent
                    say(f"wandb: kept offline, since {mirror.offline}; to upload it later: wandb sync {place}")
                mirror.run.define_metric("val/loss", step_metric="tokens", summary="min,last")
        return mirror

    def _start(self, where: WandbConfig, folder: Path, asked: str, stats: bool, about: dict[str, Any]) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")
        # Otherwise a server that does not answer holds the process for 10 s more.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        if not asked:
            os.environ.pop("WANDB_MODE", None)  # an empty one is an error to wandb
        import wandb  # here, since it takes half a second

        given = os.environ.get("WANDB_RUN_ID", "")  # set by the agent of a sweep
        if given and not ID.fullmatch(given):
            self.say(f"wandb: WANDB_RUN_ID = {given!r} cannot be part of a path; this run gets another id")
            given = ""
        self.id = self.id or given or uuid.uuid4().hex[:8]
        arguments: dict[str, Any] = about | {
            "id": self.id,
            "project": where.project,
            "group": where.group or None,
            "name": folder.name,
            "dir": folder,
            # Stacked runs share a process. Without create_new they would all write to the wandb run of the first.
            "settings": wandb.Settings(init_timeout=8, console="off", x_disable_stats=not stats, reinit="create_new"),
        }
        # A study is written as a whole, so that its run takes the place of the former one and does not go on from it.
        resume = None if about.get("job_type") == "study" else "allow"
        mode = asked or where.mode
        why = f"WANDB_MODE={asked}" if asked else f"wandb.mode = {mode}"
        if mode in ("auto", "online"):
            mode, why = "offline", "wandb could not be reached"
            try:
                if not WandbMirror.unreachable:
                    if wandb.login(prompt=False):
                        self.run = wandb.init(mode="online", resume=resume, **arguments)
                    else:
                        why = "you are not logged in"
            except Exception as error:  # wandb refuses the key, or there is no network
                self.say(f"wandb: cannot go online ({type(error).__name__}); this run is kept offline")
                WandbMirror.unreachable = True
                wandb.teardown()  # otherwise the id counts as taken
        if self.run is None:
            self.run = wandb.init(mode=mode, **arguments)  # pyright: ignore[reportArgumentType]  (checked by wandb)
        if self.run.offline:
            self.offline = why
        self.run.define_metric("tokens")
        self.run.define_metric("*", step_metric="tokens")

    def log(self, record: dict[str, Any]) -> None:
        """Mirror one record; one without a step is the next step of wandb."""
        with self._guarded():
            if self.run is not None:
                self.run.log(record, step=record.get("step"))

    def summarize(self, summary: dict[str, Any]) -> None:
        """Mirror the final figures."""
        with self._guarded():
            if self.run is not None:
                self.run.summary.update(summary)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Show a table. Logged again under its name, it replaces the former one."""
        with self._guarded():
            if self.run is not None:
                import wandb

                self.run.log({name: wandb.Table(columns=[*columns], data=[[*row] for row in rows])})

    def page(self, name: str, path: Path) -> None:
        """Show a page of HTML."""
        with self._guarded():
            if self.run is not None:
                import wandb

                # wandb's own style sheet and base address would break the page's looks and its links.
                self.run.log({name: wandb.Html(path, inject=False)})

    def is_lowest(self, loss: float) -> bool:
        """Whether a checkpoint of this validation loss is the best so far, and is to be uploaded."""
        if not self.uploads or not loss < (math.inf if self.best is None else self.best):
            return False
        self.best = loss
        return True

    def upload(self, checkpoint: Path) -> None:
        """Add a checkpoint as the newest version of the run's model, under the alias `best`."""
        with self._guarded():
            if self.run is not None:
                import wandb

                artifact = wandb.Artifact(f"model-{self.id}", "model", metadata={"val/loss": self.best})
                # A copy is made, since the checkpoint may be deleted before it is uploaded.
                artifact.add_dir(str(checkpoint))
                self.run.log_artifact(artifact, aliases=["best"])

    def close(self, failed: bool) -> None:
        """End the wandb run."""
        with self._guarded():
            if self.run is not None:
                self.run.finish(exit_code=int(failed))
        self.run = None

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Turn wandb off if it fails inside. A run never ends because of its mirror."""
        try:
            yield
        except Exception as error:
            self.run = None
            self.say(f"warning: wandb is off for this run ({type(error).__name__}: {error}); its folder has it all")
            if isinstance(error, ConnectionError):
                # wandb's own process has died. At the end wandb would look for it and print a traceback.
                with suppress(Exception):
                    import wandb

                    wandb.teardown()


def _is_tuning_run(folder: Path) -> bool:
    """Whether a run chooses the learning rate of a study's arm: a study keeps these runs in its folder `tune`."""
    return folder.parent.name == "tune" and (folder.parent.parent / "study.toml").exists()
