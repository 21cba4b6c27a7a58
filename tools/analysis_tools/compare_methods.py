"""Compare methods. The same as ``mmkd compare``."""
from mmkd_cli import run

if __name__ == '__main__':
    run('compare')
