"""Work that may hang, given up after some time with the processes that it has started."""

import multiprocessing
import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def deadline(seconds: int = 60) -> Iterator[None]:
    """Raises TimeoutError after the given number of seconds, and leaves no process behind."""

    def give_up(number, frame):
        raise TimeoutError(f"still running after {seconds} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        for process in multiprocessing.active_children():
            process.kill()
            process.join()
