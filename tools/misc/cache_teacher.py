"""Compute a teacher's class logits once. The same as ``mmkd cache``."""
from mmkd_cli import run

if __name__ == '__main__':
    run('cache')
