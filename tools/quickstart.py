"""See distillation work in minutes. The same as ``mmkd quickstart``."""
from mmkd_cli import run

if __name__ == '__main__':
    run('quickstart')
