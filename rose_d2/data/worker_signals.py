"""SIGTERM in the workers of a loader.

A cluster that takes a machine away sends SIGTERM to every process of the job, also to the workers
that load data. They have to go on, for the step that is under way, and end with the process they
work for: only its SIGTERM counts.
"""

import os
import signal
import threading


def obey_only_the_parent() -> None:
    """Ignore SIGTERM from any process but the parent, from now on in this process.

    Has to be called in the main thread before others are started.
    """
    if not hasattr(signal, "sigwaitinfo"):  # macOS
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_wait_for_the_parent, name="SIGTERM", daemon=True).start()


def _wait_for_the_parent() -> None:
    # A handler would not learn who sent the signal.
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
