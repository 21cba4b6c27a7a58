"""Run a tool while holding a lock: ``python -m mmkd.experiments.locked_tool LOCK TOOL ARGUMENT...``.

The training itself holds the lock of its work directory. So when only the experiment that started it is
killed, the next one waits for the training to end, and does not write into the same directory.
"""
import runpy
import sys

from filelock import FileLock


def main() -> None:
    """Run the tool as a script."""
    lock, tool, *arguments = sys.argv[1:]
    sys.argv = [tool, *arguments]
    with FileLock(lock):
        runpy.run_path(tool, run_name='__main__')


if __name__ == '__main__':
    main()
