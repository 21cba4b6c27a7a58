"""Run a command of mmkd while holding a lock: ``locked_command LOCK NAME ARGUMENT...``.

The training itself holds the lock of its work directory. So when only the experiment that started it is
killed, the next one waits for the training to end, and does not write into the same directory.
"""
import sys

from filelock import FileLock

from mmkd_cli import main


def run() -> None:
    """Run the command."""
    lock, *words = sys.argv[1:]
    with FileLock(lock):
        main(words)


if __name__ == '__main__':
    run()
