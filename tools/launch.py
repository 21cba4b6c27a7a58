"""Start the processes of one machine: ``launch.py TORCHRUN_OPTION... SCRIPT ARGUMENT...``.

This is torchrun, with another end. Signals are passed on to the processes, which save and exit. The exit
status is theirs: 0 (done), 2 (a mistake, which the process has explained), 75 (interrupted and saved), or 1.
Processes are not restarted after 2 and 75. Instead of torchrun's report there is one line for a process that
could not say anything itself.
"""
import logging
import os
import signal
import sys

from torch import distributed as torch_dist
from torch.distributed import run
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.launcher import api

_FINAL = (2, 75, 130)
"""Exit statuses after which a restart makes no sense: a mistake, an interrupt, Ctrl-C for the second time."""
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Agent(LocalElasticAgent):
    """torchrun's agent, which passes signals on and knows when not to restart."""

    def _start_workers(self, group):
        pids = super()._start_workers(group)
        for number in _SIGNALS:  # torch has just installed handlers that kill the processes after 30 s
            signal.signal(number, self._pass_on)
        return pids

    def _pass_on(self, number, frame) -> None:
        for pid in self._pcontext.pids().values():
            try:
                # A terminal has sent Ctrl-C to its whole group, and a second one would end them at once.
                shared = number == signal.SIGINT and os.getpgid(pid) == os.getpgrp()
                os.kill(pid, signal.SIGTERM if shared else number)
            except ProcessLookupError:
                pass

    def _monitor_workers(self, group):
        result = super()._monitor_workers(group)
        statuses = [failure.exitcode for failure in result.failures.values()]
        if any(status in _FINAL for status in statuses):
            self._remaining_restarts = 0
        elif statuses and self._remaining_restarts:
            print(f'{_reasons(result.failures)}; restarting all processes '
                  f'({self._remaining_restarts} restarts left).', file=sys.stderr, flush=True)
        return result

    def _shutdown(self, death_sig=signal.SIGTERM, **kwargs) -> None:
        # The others may wait for a process that has failed, where they do not notice SIGTERM.
        super()._shutdown(signal.SIGKILL, **kwargs)


def _reasons(failures) -> str:
    return ', '.join(
        f'rank {rank} was killed by {signal.Signals(-failure.exitcode).name}' if failure.exitcode < 0
        else f'rank {rank} ended with exit status {failure.exitcode}' for rank, failure in failures.items())


def main() -> int:
    """Run the processes and return the exit status."""
    logging.disable(logging.ERROR)  # of this process: what it logs about failures is repeated below
    api.LocalElasticAgent = Agent  # torchrun has no option for the class of its agent
    try:
        run.run(run.parse_args(sys.argv[1:]))
    except ChildFailedError as error:
        statuses = [failure.exitcode for failure in error.failures.values()]
        final = next((status for status in statuses if status in _FINAL), None)
        killed = {rank: failure for rank, failure in error.failures.items() if failure.exitcode < 0}
        if final is None and killed:  # the others have said themselves what is wrong
            print(f'error: {_reasons(killed)}.', file=sys.stderr)
        return final or 1
    except (RendezvousError, torch_dist.DistError) as error:
        print(f'error: the machines cannot be connected ({str(error).splitlines()[0]}); check MASTER_ADDR '
              'and PORT, and that all machines have been started.', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == '__main__':
    sys.exit(main())
