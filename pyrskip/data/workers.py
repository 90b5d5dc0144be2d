"""Loader workers and the signals by which a cluster takes a machine away."""

import signal

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""What schedulers send before they take a machine away."""


def deaf(worker: int) -> None:
    """DataLoader's worker_init_fn. Schedulers signal every process of a job: a worker that ended by it would end the training
    before that has saved. Its parent ends it."""
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
