"""Write the report of a study, or of a fine-tuning, from what its runs left behind. Nothing is trained; takes seconds.

Of a study, finished or not, there are afterwards, in DIRECTORY/report: index.html (one file, open it in a browser or
mail it), report.md, results.json, tables/*.csv and figures/*.png. With --to they go to that directory, for a
repository: no HTML, and raw.json, which the same report is written from again on any machine. Of raw.json (or the
directory it is in) the report goes beside it, with the HTML.

With --watch the report of a running study is written again whenever a piece of it is finished, and a table shows where
each run is; it only reads what the study writes, and ends with it. Ctrl-C ends the view, not the study.

Of a fine-tuning there are, in DIRECTORY: scores.html, scores.md, tables/*.csv and figures/*.png. With --to they go to
that directory, for a repository: no HTML, a copy of the summary in which paths are cut to their names, and all cells in
one file, so that the same page can be written again from that directory.

  kd-megatron report studies/demo
  kd-megatron report studies/demo --watch
  kd-megatron report studies/wiki_small --to docs/results/wiki_small
  kd-megatron report runs/finetune-NAME --to docs/results/NAME --published others.json
"""

import argparse
from pathlib import Path

HELP = "tables, figures and the HTML page of a study or a fine-tuning"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "directory", help="a study's directory, such as studies/demo, its raw.json, or a fine-tuning's output"
    )
    parser.add_argument("--to", type=Path, metavar="DIR", help="where a report for a repository goes")
    parser.add_argument("--watch", action="store_true", help="study: follow it until it is finished")
    parser.add_argument(
        "--published", type=Path, metavar="FILE", help="fine-tuning: scores that others report, shown beside these"
    )
    parser.add_argument(
        "--interval",
        choices=("t", "bootstrap"),
        help="study: how intervals are made; bootstrap needs 10 seeds (docs/statistics.md); default: t, or as packed",
    )
    parser.add_argument(
        "--with",
        dest="beside",
        nargs="+",
        default=[],
        metavar="STUDY",
        help="study: others of other budgets, pools or sizes, whose losses the scaling laws are fitted to as well",
    )


def run(args: argparse.Namespace) -> int:
    """Write the report and print its path."""
    directory = Path(args.directory)
    if _is_finetuning(directory):
        from kd_megatron.report.finetune.page import write_page

        print(write_page(directory, args.to, args.published))
        return 0
    if args.published:
        from kd_megatron.errors import RecipeError

        raise RecipeError(
            given=f"--published with {args.directory}, which is no output of fine-tuning",
            expected="the --output of a finetune command",
            fix="correct the path, or leave the option out",
        )
    print(_of_study(directory, args))
    return 0


def _of_study(directory: Path, args: argparse.Namespace) -> Path:
    from kd_megatron.errors import RecipeError
    from kd_megatron.report import packed
    from kd_megatron.report.publish import publish
    from kd_megatron.report.study.page import write_report

    if args.watch:
        from kd_megatron.report.watch import watch

        if args.to or packed.find(directory):
            raise RecipeError(
                given="--watch with --to, or with a packed study",
                expected="the directory of a study, which the report goes to as well",
                fix="leave --to out, or write the report once, without --watch",
            )
        return watch(directory, args.interval or "t", args.beside)
    if args.to or packed.find(directory):
        return publish(directory, args.to, args.interval, args.beside)
    return write_report(directory, args.interval or "t", args.beside)


def _is_finetuning(directory: Path) -> bool:
    """Whether fine-tuning wrote ``directory``, which then says whose scores it holds; or a page of one is there."""
    from kd_megatron.finetune.places import OWNER
    from kd_megatron.report.finetune.results import CELLS

    return (directory / OWNER).is_file() or (directory / CELLS).is_file()
