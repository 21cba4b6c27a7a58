"""Export a student. The same as ``mmkd export``."""
from mmkd_cli import run

if __name__ == '__main__':
    run('export')
