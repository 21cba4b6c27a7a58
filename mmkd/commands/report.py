"""The tables of comparisons: ``mmkd report``."""
import argparse
import json

from ..errors import MMKDError, one_line
from ..experiments.report import markdown, print_markdown


def main(args: argparse.Namespace) -> None:
    """Run the command."""
    for work_dir in args.work_dirs:
        path = work_dir / 'comparison.json'
        if not path.is_file():
            raise MMKDError(f"There is no {str(path)!r}; a comparison of 'mmkd compare' writes it.")
        try:
            text = markdown(json.loads(path.read_text()))
        except (ValueError, KeyError, TypeError) as error:
            raise MMKDError(f"{str(path)!r} was not written by 'mmkd compare' ({one_line(error)}).") from None
        print_markdown(text)
