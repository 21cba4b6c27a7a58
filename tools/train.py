"""Train a detector or a classifier. The same as ``mmkd train``."""
from mmkd_cli import run

if __name__ == '__main__':
    run('train')
