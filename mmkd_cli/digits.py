"""Draw the digits that the examples train on, into the folder data/.

    mmkd digits digits_det

The digits are scikit-learn's 'load_digits'; nothing is downloaded.
"""
import argparse

SETS = ('digits_det', 'digits_det_6000', 'digits_cls')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument('names', nargs='+', choices=SETS, metavar='NAME',
                        help=f'the sets to draw: {", ".join(SETS)}')
    parser.add_argument('--smoke', action='store_true', help='draw only a few images')
