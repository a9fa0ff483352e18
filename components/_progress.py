"""One progress bar at a time, on standard error, and only where a person is looking."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console(stderr=True)


@contextmanager
def progress(label: str, total: int) -> Iterator[Callable[..., None]]:
    """Shows a bar for `total` units of work; the block calls what it gets with the number of units just done."""
    columns = (TextColumn("    {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bar = Progress(
        *columns,
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal or console.quiet,
    )
    with bar:
        task = bar.add_task(label, total=total)
        yield lambda n=1, **kwargs: bar.update(task, advance=n, **kwargs)


@contextmanager
def quiet() -> Iterator[None]:
    """Neither steps nor bars are shown within: something else has the screen."""
    before, console.quiet = console.quiet, True
    try:
        yield
    finally:
        console.quiet = before
