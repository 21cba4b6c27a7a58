"""Make the digits classification set: handwritten digits among clutter, as folders of images.

The images are in {train,val}/<digit>/, as MMPretrain's CustomDataset reads them. The digits are
scikit-learn's ``load_digits`` (nothing is downloaded). Train and val share no digit.
"""
from mmkd.datasets.digits import make_from_command_line
from mmkd.datasets.digits_classification import make

if __name__ == '__main__':
    make_from_command_line(__doc__, make, 'data/digits_cls', train=3000, val=2000)
