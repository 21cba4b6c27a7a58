"""List all distillation methods. The same as ``mmkd list``."""
from mmkd_cli import run

if __name__ == '__main__':
    run('list')
