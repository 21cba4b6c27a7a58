"""The digits that the examples train on: ``mmkd digits``."""
import argparse

from ..experiments.training_config import DIGITS, draw_digits, folder_of_digits


def main(args: argparse.Namespace) -> None:
    """Run the command."""
    for name in args.names:
        images = DIGITS[name].smoke_images if args.smoke else DIGITS[name].images
        draw_digits(name, images, folder_of_digits(name, args.smoke))
