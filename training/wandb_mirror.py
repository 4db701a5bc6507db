"""The mirror of a run in wandb. It never blocks a run for long, never asks, and never ends one."""

import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from training.config import RunConfig, tree


class WandbMirror:
    """wandb for one run, or nothing at all: the first failure turns it off with one warning.

    WANDB_MODE decides, then `wandb.mode`. `auto` is online for those who are logged in and offline for others. `id` is
    the wandb run's id, kept in checkpoints so that a resumed run continues it.
    """

    def __init__(self, config: RunConfig, folder: Path, run_id: str | None, say: Callable[[str], None]):
        self.run: Any = None
        self.id = run_id
        self.say = say
        mode = os.environ.get("WANDB_MODE") or config.wandb.mode
        if mode != "disabled":
            self._guard(self._start, config, folder, mode)

    def _start(self, config: RunConfig, folder: Path, mode: str) -> None:
        import wandb  # half a second

        os.environ.setdefault("WANDB_SILENT", "true")
        if mode in ("auto", "online"):
            mode = "online" if self._can_log_in(wandb) else "offline"
        settings = wandb.Settings(init_timeout=15, console="off", x_disable_stats=True)
        self.id = self.id or os.environ.get("WANDB_RUN_ID") or uuid.uuid4().hex[:8]  # a sweep's agent sets it
        arguments: dict[str, Any] = {
            "id": self.id,
            "project": config.wandb.project,
            "group": config.wandb.group or None,
            "job_type": "train",
            "name": folder.name,
            "tags": [config.model.activation, config.data.corpus[:64]],
            "config": tree(config),
            "dir": folder,
            "settings": settings,
        }
        try:
            if mode == "online":
                arguments["resume"] = "allow"
            self.run = wandb.init(mode=mode, **arguments)  # pyright: ignore[reportArgumentType]  (checked by wandb)
        except Exception as error:
            if mode != "online":
                raise
            self.say(f"wandb: cannot go online ({type(error).__name__}); this run is kept offline")
            arguments.pop("resume")
            wandb.teardown()  # else the id counts as taken
            self.run = wandb.init(mode="offline", **arguments)
        self.run.define_metric("tokens")
        self.run.define_metric("*", step_metric="tokens")
        if self.run.settings.mode != "online":
            self.say(f"wandb: offline; to upload it later: wandb sync {Path(self.run.dir).parent}")

    def _can_log_in(self, wandb: Any) -> bool:
        try:
            return bool(wandb.login(prompt=False))
        except Exception as error:  # a key that wandb refuses, or no network to check it
            self.say(f"wandb: cannot log in ({type(error).__name__}); this run is kept offline")
            return False

    def log(self, record: dict[str, Any]) -> None:
        """Mirror one record."""
        if self.run is not None:
            self._guard(self.run.log, record, step=record["step"])

    def summarize(self, summary: dict[str, Any]) -> None:
        """Mirror the final figures."""
        if self.run is not None:
            self._guard(self.run.summary.update, summary)

    def close(self, failed: bool) -> None:
        """End the wandb run."""
        if self.run is not None:
            self._guard(self.run.finish, exit_code=int(failed))
        self.run = None

    def _guard(self, call: Callable[..., Any], *arguments: Any, **keywords: Any) -> None:
        try:
            call(*arguments, **keywords)
        except Exception as error:
            self.run = None
            self.say(f"warning: wandb is off for this run ({type(error).__name__}: {error}); metrics.jsonl goes on")
