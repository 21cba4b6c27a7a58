"""Make the digits detection set: handwritten digits on noisy gradients, in COCO format.

The digits are scikit-learn's ``load_digits`` (nothing is downloaded). Train and val share no digit.
"""
from mmkd.datasets.digits import make_from_command_line
from mmkd.datasets.digits_detection import make

if __name__ == '__main__':
    make_from_command_line(__doc__, make, 'data/digits_det', train=600, val=150)
