import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent


def read_version() -> str:
    # Not imported: importing mmkd needs torch and the OpenMMLab packages.
    text = (HERE / 'mmkd' / 'version.py').read_text()
    return re.search(r"__version__ = '([^']+)'", text)[1]


class BuildWithConfigs(build_py):
    """Puts ``configs/`` into the wheel, where OpenMMLab's packages keep theirs."""

    def run(self):
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / 'mmkd' / '.mim' / 'configs'
            shutil.copytree(HERE / 'configs', target, dirs_exist_ok=True,
                            ignore=shutil.ignore_patterns('__pycache__'))


setup(
    name='mmkd',
    version=read_version(),
    description='Knowledge distillation for MMDetection and MMPretrain',
    long_description=(HERE / 'README.md').read_text() if (HERE / 'README.md').exists() else '',
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    classifiers=[
        'Intended Audience :: Science/Research',
        'Operating System :: POSIX :: Linux',
        'Programming Language :: Python :: 3',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
        'Typing :: Typed',
    ],
    python_requires='>=3.10',
    packages=find_packages(include=['mmkd', 'mmkd.*']),
    package_data={'mmkd': ['py.typed']},
    cmdclass={'build_py': BuildWithConfigs},
    # The OpenMMLab packages exist under two sets of names, so neither is a hard requirement.
    # tools/setup_env.sh installs either set with versions that were tested together.
    install_requires=['filelock', 'numpy', 'rich', 'safetensors', 'scipy'],
    extras_require={
        'onedl': [
            'torch>=2.4',
            'torchvision',
            'onedl-mmengine>=0.10.12',
            'onedl-mmcv>=2.3.6',
            'onedl-mmdetection>=3.5.1',
            'onedl-mmpretrain>=1.3.6',
            'faster-coco-eval',
            'pycocotools',
        ],
        'upstream': [
            'torch>=2.1,<2.2',
            'torchvision',
            'numpy<2',
            'opencv-python<4.11',
            'mmengine>=0.10.7,<0.11',
            'mmcv>=2.1,<2.2',
            'mmdet==3.3.0',
            'mmpretrain==1.2.0',
            'pycocotools',
        ],
        'dev': [
            'codespell',
            'hypothesis',
            'matplotlib',
            'mdformat',
            'mdformat-gfm',
            'mypy',
            'pytest',
            'pytest-xdist>=3.7',
            'ruff',
            'scikit-learn',
            'timm',
            'torchdistill',
        ],
    },
    zip_safe=False,
)
