"""Shows the progress of training: a bar on a terminal, plain lines elsewhere."""

from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text


class Figures(ProgressColumn):
    """Loss, validation loss and speed of a task, from its fields."""

    def render(self, task: Task) -> Text:
        """Return the figures of the task as text."""
        return Text(figures(task.fields.get("record", {})), style="cyan")


def figures(record: dict[str, Any]) -> str:
    """Return loss, validation loss and speed of a record as one line."""
    forms = {"train/loss": "loss {:.3f}", "val/loss": "val {:.3f}", "perf/tokens_per_s": "{:,.0f} tokens/s"}
    return "  ".join(form.format(record[key]) for key, form in forms.items() if record.get(key) is not None)


class Display:
    """The progress of one run, or of all steps of a study. Use it as a context."""

    def __init__(self, name: str, start: int, steps: int, resumed: bool = False):
        self.console = Console(highlight=False)
        self.steps, self.name = steps, name
        self.latest: dict[str, Any] = {}
        self.bar: Progress | None = None
        if self.console.is_terminal:
            columns = TextColumn("{task.description}"), BarColumn(bar_width=20), Figures(), TimeRemainingColumn()
            self.bar = Progress(*columns, console=self.console)
            self.task = self.bar.add_task(name, total=steps, completed=start, record={})
        if resumed:
            self.say(f"{name}: resumed at step {start} of {steps}")

    def __enter__(self) -> Self:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar:
            self.bar.stop()

    def say(self, text: str) -> None:
        """Print a line."""
        # A path may hold square brackets, which are markup to rich.
        self.console.print(text, markup=False, soft_wrap=True)

    def update(self, record: dict[str, Any]) -> None:
        """Show a new record; where there is no terminal, only those with a validation loss."""
        # A record may lack the validation loss, and the bar goes on to show the last one.
        self.latest |= record
        if self.bar:
            self.bar.update(self.task, completed=record["step"], record=self.latest)
        # A log of every record would be long.
        elif "val/loss" in record:
            self.say(f"{self.name}  step {record['step']}/{self.steps}  {figures(self.latest)}")
