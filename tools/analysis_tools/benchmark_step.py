"""Measure a training step. The same as ``mmkd benchmark``."""
from mmkd_cli import run

if __name__ == '__main__':
    run('benchmark')
