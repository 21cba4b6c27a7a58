"""Evaluate a student's checkpoint. The same as ``mmkd test``."""
from mmkd_cli import run

if __name__ == '__main__':
    run('test')
