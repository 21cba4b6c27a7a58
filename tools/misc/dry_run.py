"""Try a distilling config without data. The same as ``mmkd dry-run``."""
from mmkd_cli import run

if __name__ == '__main__':
    run('dry-run')
