"""SIGTERM and SIGINT (Ctrl+C): a fit ends after the step it is in, with a checkpoint."""

import signal
import sys
import threading
import time
from types import FrameType
from typing import NoReturn

from lightning import Trainer
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

AGAIN = 1.0  # seconds: a terminal and a launcher may both send one and the same signal


class Interrupted(SystemExit):
    """A signal ended the run. The exit code is the usual one: 128 + the number of the signal, 130 or 143."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


class StopRequest:
    """Notes the first SIGTERM or SIGINT, for the training loop to stop at the next good place. A second signal ends at once.

    Lightning restores the handlers of before when the run ends.

    Attributes:
        signal: the number of the signal; None: none came yet.

    Args:
        trainer: its other processes get the signal too.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.signal: int | None = None
        self._time = 0.0
        self._trainer = trainer
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._note)

    def stop(self) -> NoReturn:
        """End this process.

        Raises:
            Interrupted: always. Processes that Lightning started end with code 0: it kills the first process after any other code.
        """
        environment = getattr(self._trainer.strategy, "cluster_environment", None)
        if isinstance(environment, LightningEnvironment) and not self._trainer.is_global_zero:
            sys.exit(0)
        raise Interrupted(self.signal or signal.SIGTERM)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.signal is not None:
            if time.monotonic() - self._time > AGAIN:
                raise Interrupted(number)
            return
        self.signal, self._time = number, time.monotonic()
        if self._trainer.is_global_zero:
            print(f"{signal.Signals(number).name}: writing a checkpoint after this step", file=sys.stderr, flush=True)
        launcher = self._trainer.strategy.launcher
        if number == signal.SIGTERM and isinstance(
            launcher, _SubprocessScriptLauncher
        ):  # a terminal sends SIGINT to all
            launcher.kill(number)
