# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""The command ``paq-detr``: predict, train, eval, report, data, export, weights, this machine.

Exit codes: 0 done; 1 a training that broke off, pictures that could not be read, or problems that doctor
or check-data found; 2 wrong input, said in one sentence; 128 and its number for a signal.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence

from . import __version__
from ._detectron2 import needed_by
from ._threads import wait_asleep

# What a command does is imported when it runs, so that help comes at once.
_COMMANDS: dict[str, tuple[str, str]] = {
    "predict": ("find objects in pictures, folders, videos", "_predict"),
    "init": ("look at your data and write a config for them, explained", "_init"),
    "train": ("train a config", "_train"),
    "eval": ("evaluate a trained run on its dataset", "_eval"),
    "report": ("what the errors of saved detections are, as a page", "_report"),
    "demo": ("train a small detector in minutes and draw what it finds", "_demo"),
    "check-data": ("look at every picture and box of a dataset", "_check_data"),
    "convert-data": ("write a dataset of another format as COCO json", "_convert_data"),
    "export": ("write a trained run as ONNX, for torch or for OpenVINO", "_export"),
    "convert": ("convert published weights", "_convert"),
    "average": ("average checkpoints of one training", "_average"),
    "install-detectron2": ("install Detectron2 0.6 where there is none", "_install_detectron2"),
    "doctor": ("what this machine has, and what does not work", "_doctor"),
}
_KEY = re.compile(r"[A-Z][A-Z0-9_]*(\.[A-Za-z0-9_]+)+$|(OUTPUT_DIR|SEED|CUDNN_BENCHMARK|VIS_PERIOD|VERSION)$")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    wait_asleep()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    listed = "\n".join(f"  {name:18} {what}" for name, (what, _) in _COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="paq-detr",
        description="Query-based object detectors: predict, train, evaluate.",
        epilog=f"commands:\n{listed}\n\npaq-detr COMMAND --help tells more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"paq_detr {__version__}")
    parser.add_argument("command", choices=_COMMANDS, metavar="COMMAND")
    if not arguments:
        parser.print_help()
        return 2
    command = parser.parse_args(arguments[:1]).command
    with needed_by("paq-detr"):
        return globals()[_COMMANDS[command][1]](arguments[1:])


def _parser(command: str, usage: str = "") -> argparse.ArgumentParser:
    prog = f"paq-detr {command}"
    return argparse.ArgumentParser(prog=prog, usage=f"{prog} {usage}" if usage else None,
                                   description=f"{_COMMANDS[command][0].capitalize()}.")  # fmt: skip


def _run(action: Callable[[], int | None]) -> int:
    from .engine import run_cli

    return run_cli(action, "paq-detr")


def split_keys(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """A command line in what comes before the first config key, and the KEY VALUE pairs."""
    first = next((i for i, text in enumerate(arguments) if _KEY.match(text)), len(arguments))
    return list(arguments[:first]), list(arguments[first:])


def _run_with_options(
    parser: argparse.ArgumentParser,
    add_arguments: Callable[[argparse.ArgumentParser], None],
    action: Callable[[argparse.Namespace], int | None],
    arguments: list[str],
) -> int:
    add_arguments(parser)
    options = parser.parse_args(arguments)
    return _run(lambda: action(options))


def _predict(arguments: list[str]) -> int:
    parser = _parser("predict", "RUN_OR_WEIGHTS SOURCE [SOURCE ...] [options]")
    from .predict import command

    return _run_with_options(parser, command.add_arguments, command.predict, arguments)


def _init(arguments: list[str]) -> int:
    parser = _parser("init", "DATA [--output FILE]")
    from .init import command

    return _run_with_options(parser, command.add_arguments, command.init, arguments)


def _launch_parser(command: str, usage: str) -> argparse.ArgumentParser:
    parser = _parser(command, f"{usage} [options] [KEY VALUE ...]")
    add_launch_arguments(parser)
    return parser


def add_launch_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "KEY VALUE pairs change the config, as in SOLVER.BASE_LR 1e-4; they come last."
    parser.add_argument("--num-gpus", type=int, default=1, help="of this machine (default: 1)")
    parser.add_argument("--num-machines", type=int, default=1)
    parser.add_argument("--machine-rank", type=int, default=0, help="of this machine, from 0")
    parser.add_argument("--dist-url", default="auto", help="of the first machine, where there are several")


def _train(arguments: list[str]) -> int:
    arguments, opts = split_keys(arguments)
    parser = _launch_parser("train", "CONFIG")
    parser.add_argument("config_file", metavar="CONFIG", help="a yaml file, or a name such as crowd/paq_dh")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint of OUTPUT_DIR")
    args = parser.parse_args(arguments, argparse.Namespace(opts=opts, eval_only=False))
    return _run(lambda: _launch(args))


def _eval(arguments: list[str]) -> int:
    arguments, opts = split_keys(arguments)
    parser = _launch_parser("eval", "RUN_OR_WEIGHTS")
    parser.add_argument("run", metavar="RUN_OR_WEIGHTS", help="folder that training wrote, or a weight file")
    parser.add_argument("--config", metavar="FILE", help="in place of the config.yaml beside the weights")
    parser.add_argument("--allow-partial", action="store_true", help="evaluate weights that fit only in part")
    args = parser.parse_args(arguments, argparse.Namespace(opts=opts, eval_only=True, resume=False))

    def evaluate() -> None:
        from .engine.run_folder import find_run
        from .errors import UserError

        run = find_run(args.run, args.config)
        if not run.config_file:
            raise UserError(f"Nothing beside {run.weights} tells its datasets: name a config by --config FILE.")
        args.config_file = run.config_file
        args.opts = ["MODEL.WEIGHTS", run.weights, "OUTPUT_DIR", run.folder, *args.opts]
        _launch(args)

    return _run(evaluate)


def _report(arguments: list[str]) -> int:
    parser = _parser("report")
    from .evaluation.analysis import command

    return _run_with_options(parser, command.add_arguments, command.report, arguments)


def _launch(args: argparse.Namespace) -> None:
    from .engine.main import run

    run(args)


def _demo(arguments: list[str]) -> int:
    arguments, opts = split_keys(arguments)
    parser = _parser("demo", "[options] [KEY VALUE ...]")
    from .demo import command, web

    command.add_arguments(parser)
    web.add_arguments(parser)
    args = parser.parse_args(arguments, argparse.Namespace(opts=opts))
    return _run(lambda: web.serve(args.web, args.host, args.port) if args.web else command.demo(args))


def _check_data(arguments: list[str]) -> int:
    parser = _parser("check-data", "SOURCE [options]")
    from . import check_data

    return _run_with_options(parser, check_data.add_arguments, check_data.check_data, arguments)


def _convert_data(arguments: list[str]) -> int:
    parser = _parser("convert-data", "SOURCE --output FILE [options]")
    from .data import convert_data

    return _run_with_options(parser, convert_data.add_arguments, convert_data.convert_data, arguments)


def _export(arguments: list[str]) -> int:
    from .export import main

    return main(arguments)


def _convert(arguments: list[str]) -> int:
    from .convert.__main__ import main

    return _run(lambda: main(arguments, "paq-detr convert"))


def _average(arguments: list[str]) -> int:
    from .average import main

    return _run(lambda: main(arguments, "paq-detr average"))


def _install_detectron2(arguments: list[str]) -> int:
    from .install_detectron2 import main

    return main(arguments, "paq-detr install-detectron2")


def _doctor(arguments: list[str]) -> int:
    _parser("doctor").parse_args(arguments)
    from .doctor import main

    return main()
