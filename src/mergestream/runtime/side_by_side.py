"""Runs jobs side by side in processes that are forked from a server, which has imported what they need.

Each process takes one job after the other and keeps what it has loaded. What they print arrives in whole lines.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any

from mergestream.runtime import fork_server, interrupt, processes
from mergestream.runtime.interrupt import Stopped

THREADS = "OMP_NUM_THREADS"


@dataclass(frozen=True)
class Ended:
    """What became of a job.

    Args:
        number: of the job.
        result: what the work returned.
        lost: how its process died, if it did.
    """

    number: int
    result: Any = None
    lost: str = ""


class SideBySide:
    """Runs jobs in several processes.

    Args:
        work: what to do with a job; a function that pickle knows by its name, or a `functools.partial` of one.
        count: number of processes, each with one thread unless OMP_NUM_THREADS says otherwise.
        modules: what to import before the processes start.
    """

    def __init__(self, work: Callable[[Any], Any], count: int, modules: Sequence[str]):
        self._work, self._count = work, count
        self._environment = {THREADS: "1", **os.environ}
        self._workers: list[_Worker] = []
        self._saved = False
        with processes.environment(THREADS, self._environment[THREADS]):
            fork_server.start(modules)

    def run(self, jobs: Iterable[tuple[int, Any]]) -> Iterator[Ended]:
        """Yield what became of each job, as they end.

        Args:
            jobs: numbers and jobs; one is taken when a process is free.

        Raises:
            Stopped: if a signal arrived, when all processes have saved their work and ended.
        """
        waiting, messages = iter(jobs), []
        with self._forwarding() as received:
            while True:
                if not received:
                    self._hand_out(waiting)
                for worker in self._workers:
                    if received and not worker.told:  # it was just starting
                        worker.stop(received[-1])
                if not self._workers:
                    break
                for worker, news in self._news():
                    if isinstance(news, Ended):
                        yield news
                    elif isinstance(news, tuple):  # a signal stopped it, which may have reached it alone
                        number, message, saved = news
                        messages.append(message)
                        self._saved |= saved
                        if not received:
                            self._stop(received, number)
                    else:
                        self._workers.remove(worker)
                        if (lost := worker.lost()) is not None and not received:
                            yield lost
        if received:
            raise Stopped(received[-1], "\n".join(dict.fromkeys(messages)), self._saved)

    def _hand_out(self, waiting: Iterator[tuple[int, Any]]) -> None:
        """Give a job to each free process, and end those that get none."""
        while job := next(waiting, None) if self._free() else None:
            (self._free_worker() or self._start()).give(*job)
        for worker in self._workers:
            if worker.job is None:
                worker.dismiss()

    def _free(self) -> bool:
        return len(self._workers) < self._count or self._free_worker() is not None

    def _free_worker(self) -> _Worker | None:
        return next((worker for worker in self._workers if worker.job is None), None)

    def _start(self) -> _Worker:
        self._workers.append(_Worker(self._work, self._count, self._environment))
        return self._workers[-1]

    def _news(self) -> list[tuple[_Worker, Any]]:
        """Wait for the processes. Show what they print, and return what they report; None is the end of one."""
        sources = {source: worker for worker in self._workers for source in (worker.line, *worker.printed)}
        ready = connection.wait(list(sources))
        for worker in {sources[source]: None for source in ready}:  # type: ignore[index]
            worker.show()
        return [(sources[source], sources[source].read()) for source in ready if source is sources[source].line]  # type: ignore[index]

    @contextmanager
    def _forwarding(self) -> Iterator[list[int]]:
        """Pass signals on to the processes within the block; they save their work. Yields the signals received."""
        received: list[int] = []

        def forward(number: int, frame: FrameType | None) -> None:
            self._stop(received, number)

        before = {number: signal.signal(number, forward) for number in interrupt.SIGNALS}
        try:
            yield received
        finally:
            for worker in self._workers:  # none, unless an error is on its way
                worker.stop(signal.SIGTERM)
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, received: list[int], number: int) -> None:
        received.append(number)
        for worker in self._workers:
            worker.stop(number)


class _Worker:
    """A process that runs jobs, seen from outside.

    Args:
        work, count, environment: see `SideBySide`.
    """

    def __init__(self, work: Callable[[Any], Any], count: int, environment: Mapping[str, str]):
        context = multiprocessing.get_context(fork_server.START_METHOD)
        self.line, theirs = multiprocessing.Pipe()
        self.job: int | None = None
        self.told = False  # whether it was sent a signal
        pipes = [multiprocessing.Pipe(duplex=False) for _ in ("stdout", "stderr")]
        self.printed = {source: b"" for source, _ in pipes}  # and what does not make a line yet
        arguments = (work, count, dict(environment), theirs, *(sink for _, sink in pipes))
        self._process = context.Process(target=_serve, args=arguments)  # type: ignore[attr-defined]
        self._process.start()
        for end in (theirs, *(sink for _, sink in pipes)):
            end.close()
        for source in self.printed:
            os.set_blocking(source.fileno(), False)

    def give(self, number: int, job: Any) -> None:
        """Have the process run a job."""
        self.job = number
        with suppress(BrokenPipeError, ConnectionResetError):  # it has just died, and `read` will say so
            self.line.send((number, job))

    def dismiss(self) -> None:
        """Have the process end."""
        with suppress(BrokenPipeError, ConnectionResetError):
            self.line.send(None)

    def stop(self, number: int) -> None:
        """Send the process a signal."""
        self.told = True
        if self._process.pid is not None and self._process.is_alive():
            os.kill(self._process.pid, number)

    def read(self) -> Ended | tuple[int, str, bool] | None:
        """Return what the process reports: the end of a job, how a signal stopped it, or None."""
        try:
            news = self.line.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            self.show(to_the_end=True)
            for end in (self.line, *self.printed):
                end.close()
            return None
        self.job = None
        return news

    def lost(self) -> Ended | None:
        """Return the job that the process has taken along, if it died of itself."""
        code = self._process.exitcode or 0
        if self.job is None:
            return None
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return Ended(self.job, lost=f"its process died ({how}); saved work is kept")

    def show(self, to_the_end: bool = False) -> None:
        """Print the whole lines that the process has printed."""
        for (source, kept), stream in zip(self.printed.items(), (sys.stdout, sys.stderr), strict=True):
            with suppress(BlockingIOError):
                while chunk := os.read(source.fileno(), 1 << 16):
                    kept += chunk
            lines, newline, rest = kept.rpartition(b"\n")
            self.printed[source] = b"" if to_the_end else rest
            for text in (lines + newline + rest * to_the_end).decode(errors="replace").splitlines(keepends=True):
                stream.write(text if stream is sys.stderr or self.job is None else f"[{self.job}] {text}")
            stream.flush()


def _serve(
    work: Callable[[Any], Any], count: int, environment: Mapping[str, str], line: Connection, *printed: Connection
) -> None:
    """Run jobs in a new process until it is dismissed or stopped."""
    try:
        with interrupt.watching():
            os.setpgid(0, 0)  # Ctrl-C reaches the process that started this one, which passes it on
            fork_server.enter(environment)
            for target, (sink, stream) in enumerate(zip(printed, (sys.stdout, sys.stderr), strict=True), start=1):
                os.dup2(sink.fileno(), target)
                stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
            processes.share_cores(count)
            _set_threads(int(environment[THREADS]))
            while (task := line.recv()) is not None:
                number, job = task
                result = work(job)
                sys.stdout.flush()
                line.send(Ended(number, result))
    except Stopped as stopped:
        line.send((int(stopped.signum), stopped.message, stopped.saved))
    except EOFError:  # the process that hands out jobs is gone
        pass


def _set_threads(threads: int) -> None:
    import torch  # which the server has imported, for a machine with another number of threads

    torch.set_num_threads(threads)
