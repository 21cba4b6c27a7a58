"""Progress of several trainings: bars on a terminal, a line now and then elsewhere."""
import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 10


class RunProgress:
    """Shows how far the trainings are, as a context manager.

    Args:
        titles: Titles of all trainings in the order in which they start.
        iterations: Lengths of the trainings.
        completed: Iterations that need not be trained.
        console: Where to write, by default the standard output.
    """

    def __init__(self, titles: Sequence[str], iterations: Sequence[int], completed: int = 0,
                 console: Console | None = None) -> None:
        self.titles = titles
        self.iterations = iterations
        self.console = console or Console(soft_wrap=True)  # lines of a log are not wrapped
        self.last_line = 0.0
        self.bars = Progress(
            TextColumn('{task.description}', markup=False), BarColumn(), MofNCompleteColumn(),
            TextColumn('{task.fields[loss]}'), TimeRemainingColumn(), console=self.console,
            # The log gets an entry every few seconds or minutes, not several times a second.
            speed_estimate_period=600, disable=not self.console.is_terminal)
        self.total = self.bars.add_task('all', total=sum(iterations), completed=completed, loss='')
        self.tasks: dict[int, TaskID] = {}
        self.done: dict[int, int] = {}

    def __enter__(self) -> 'RunProgress':
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def start(self, index: int) -> None:
        """Announce a training."""
        self.done[index] = 0
        self.tasks[index] = self.bars.add_task(self.titles[index], total=self.iterations[index], loss='')
        self._print_line(index, 'starting')

    def update(self, index: int, iteration: int, loss: float) -> None:
        """Show how far a training is.

        Args:
            index: Which training.
            iteration: Iterations that it has completed.
            loss: Its loss there.
        """
        if iteration == self.done[index]:
            return
        self.bars.advance(self.total, iteration - self.done[index])
        self.bars.update(self.tasks[index], completed=iteration, loss=f'loss {loss:.3f}')
        self.done[index] = iteration
        if self.bars.disable and time.monotonic() - self.last_line >= SECONDS_BETWEEN_LINES:
            left = self.bars.tasks[0].time_remaining
            time_left = '' if left is None else f', {duration(left)} min left for all'
            self._print_line(
                index, f'iteration {iteration}/{self.iterations[index]}, loss {loss:.3f}{time_left}')

    def finish(self, index: int, text: str) -> None:
        """Say what came out of a training."""
        if index in self.tasks:
            self.bars.remove_task(self.tasks.pop(index))
            self.bars.advance(self.total, self.iterations[index] - self.done[index])
        self._print_line(index, text)

    def _print_line(self, index: int, text: str) -> None:
        self.console.print(f'[{index + 1}/{len(self.titles)}] {self.titles[index]}: {text}', markup=False,
                           highlight=False)
        self.console.file.flush()
        self.last_line = time.monotonic()


def duration(seconds: float) -> str:
    """Return a duration as minutes and seconds."""
    return f'{int(seconds) // 60}:{int(seconds) % 60:02d}'
