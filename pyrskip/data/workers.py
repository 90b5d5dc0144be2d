"""Loader workers and the signals by which a cluster takes a machine away."""

import os
import signal
from threading import Thread

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""What schedulers send before they take a machine away."""


def ignore_signals(worker: int) -> None:
    """DataLoader's worker_init_fn. Schedulers signal every process of a job: a worker that ended by it would
    end the training before that has saved. SIGTERM is heeded from its parent, which waits for it."""
    for signum in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(signum, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    Thread(target=_obey, args=(os.getppid(),), daemon=True).start()


def _obey(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
