import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent


def read_version() -> str:
    # Not imported: importing mmkd needs torch and the OpenMMLab packages.
    text = (HERE / 'mmkd' / 'version.py').read_text()
    return re.search(r"__version__ = '([^']+)'", text)[1]


setup(
    name='mmkd',
    version=read_version(),
    description='Knowledge distillation for MMDetection and MMPretrain',
    long_description=(HERE / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    author='The mmkd contributors',
    license='Apache-2.0',
    keywords='knowledge distillation, object detection, image classification, MMDetection, MMPretrain',
    packages=find_packages(include=['mmkd', 'mmkd.*', 'mmkd_cli']),
    # mmkd/.mim links to configs/, tools/ and model-index.yml: MMEngine and MIM look for them there.
    package_data={
        'mmkd': [
            'py.typed',
            '.mim/model-index.yml',
            '.mim/configs/**/*.py',
            '.mim/configs/**/*.yml',
            '.mim/configs/**/*.md',
            '.mim/tools/**/*.py',
            '.mim/tools/*.sh',
        ],
    },
    # These need a checkout.
    exclude_package_data={
        'mmkd': ['.mim/tools/setup_*', '.mim/tools/run_tests.sh', '.mim/tools/quickstart.sh']},
    entry_points={'console_scripts': ['mmkd = mmkd_cli:main']},
    classifiers=[
        'Environment :: Console',
        'Intended Audience :: Developers',
        'Intended Audience :: Science/Research',
        'Operating System :: POSIX :: Linux',
        'Programming Language :: Python :: 3',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
        'Typing :: Typed',
    ],
    python_requires='>=3.10',
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
        'examples': ['matplotlib', 'scikit-learn'],
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
