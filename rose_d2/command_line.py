"""What the command lines have in common: the changes to a config, and errors in one sentence."""

from __future__ import annotations

import argparse
import inspect
import os
import signal
import sys
from collections.abc import Callable


class _Parser(argparse.ArgumentParser):
    """Takes what is left behind the options as KEY VALUE pairs, where it has a config."""

    def parse_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def, override]
        known, rest = self.parse_known_args(args, namespace)
        if rest and (not hasattr(known, "opts") or any(word.startswith("--") for word in rest)):
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        if rest:
            known.opts = [*known.opts, *rest]
        return known


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Make a parser that shows its description, usually the script's docstring, as it stands."""
    return _Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def add_config_arguments(
    parser: argparse.ArgumentParser, *, default: str | None = None, required: bool = True
) -> None:
    """Add `--config-file` and the KEY VALUE pairs at the end, as detectron2's tools take them.

    Args:
        parser: from `make_parser`; gets `config_file` and the list `opts`.
        default: the config where none is named.
        required: demand a config where there is no default.
    """
    parser.add_argument(
        "--config-file",
        metavar="FILE",
        default=default,
        required=required and default is None,
        help="config of the model" + (" (default: %(default)s)" if default else ""),
    )
    parser.add_argument(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="KEY VALUE",
        help="changes to the config, at the end, such as MODEL.DEVICE cpu TEST.TOP_K 50; the word "
        "--opts is only needed behind an option that takes several values",
    )


def run_main(work: Callable[[argparse.Namespace], int | None], args: argparse.Namespace) -> int:
    """Do the work of a command line, and turn what a user can cause into one sentence.

    Args:
        work: a function of the script; its return value, if any, is the exit status.
        args: of the command line.

    Returns:
        The exit status: that of `work` or 0, 1 after a ValueError or OSError, 130 after Ctrl-C.
    """
    script = os.path.basename(inspect.getfile(work))
    # A polite kill cleans up like Ctrl-C does.
    former = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return work(args) or 0
    except (ValueError, OSError) as error:
        sys.stderr.write(f"{script}: error: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write(f"{script}: interrupted; run it again to go on.\n")
        return 130
    finally:
        signal.signal(signal.SIGTERM, former)
