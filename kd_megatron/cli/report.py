"""Write the report of a study again, from what its runs left behind. Nothing is trained; takes seconds.

Works on an unfinished study too: the report then says what is missing. Afterwards there are, in DIRECTORY/report:
index.html (one file, open it in a browser or mail it), report.md, results.json, tables/*.csv and figures/*.png.

  kd-megatron report studies/demo
"""

import argparse

HELP = "tables, figures and the HTML page of a study"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("directory", help="a study's directory, such as studies/demo")


def run(args: argparse.Namespace) -> int:
    """Write the report and print its path."""
    from kd_megatron.study.report import write_report

    print(write_report(args.directory))
    return 0
