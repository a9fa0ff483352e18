"""Apache Beam itself: whether it is there, its flags, and its runners by name."""

import difflib
import logging
from collections.abc import Sequence
from typing import Any

from shortlist import ShortlistError

INSTALL = "pip install 'shortlist[beam]'"
DIRECT = ("direct", "switchingdirect", "fnapi")


def checked(given: Sequence[str]) -> tuple[list[str], str]:
    """Beam's flags with their dashes, and the name of the runner.

    Raises:
      ShortlistError: for a flag that Beam doesn't know (unless the runner asks its own service what it knows), a value
        that it doesn't take, and a runner that does not exist.
    """
    from apache_beam.options import pipeline_options
    from apache_beam.runners.runner import create_runner

    class Parser(pipeline_options._BeamArgumentParser):
        def error(self, message: str) -> Any:
            raise ShortlistError(f"`--beam-…`: Beam refuses a flag: {message.replace('--', '--beam-')}.")

    parser = Parser(add_help=False, allow_abbrev=False)
    for options in {str(cls): cls for cls in pipeline_options.PipelineOptions.__subclasses__()}.values():
        options._add_argparse_args(parser)
    flags = [f"--{flag}" for flag in given]
    known, unknown = parser.parse_known_args(flags)
    runner = known.runner or "DirectRunner"
    names = [*pipeline_options.StandardOptions.KNOWN_RUNNER_NAMES]
    try:
        kind = type(create_runner(runner))
    except (ImportError, AttributeError) as error:
        raise ShortlistError(f"`--beam-runner` cannot be loaded: {last_line(error)} Received: {runner}.") from None
    except ValueError:
        raise ShortlistError(f"`--beam-runner` must be one of {', '.join(names)}. Received: {runner}.") from None
    asks = any("portable_runner" in base.__module__ for base in kind.__mro__)
    if unknown and not asks:
        name = unknown[0].partition("=")[0]
        near = difflib.get_close_matches(name, parser._option_string_actions, n=1)
        raise ShortlistError(
            f"`{name.replace('--', '--beam-')}` is not a flag of Beam's {runner}."
            + (f" Did you mean `{near[0].replace('--', '--beam-')}`?" if near else "")
        )
    quiet = [] if known.default_sdk_harness_log_level else ["--default_sdk_harness_log_level=WARNING"]
    return [*flags, *quiet], runner


def import_beam() -> None:
    """Loads Beam, without what it says meanwhile.

    Raises:
      ShortlistError: if it is not installed.
    """
    handlers, level = list(logging.root.handlers), logging.root.manager.disable
    logging.disable(logging.WARNING)  # it warns of parts that are not installed, and not needed
    try:
        import apache_beam  # noqa: F401
    except ImportError:
        raise ShortlistError(f"`--engine beam` needs Apache Beam. Install it: {INSTALL}.") from None
    finally:
        logging.disable(level)
        for handler in [h for h in logging.root.handlers if h not in handlers]:
            logging.root.removeHandler(handler)
    if logging.getLogger("apache_beam").level == logging.NOTSET:
        logging.getLogger("apache_beam").setLevel(logging.ERROR)  # what goes wrong is raised as well


def runner_of(name: str, options: Any) -> Any:
    """A runner; the direct one is Beam's own in Python, since by default it fetches a program from the net."""
    from apache_beam.runners.runner import create_runner

    if name.rpartition(".")[2].lower().removesuffix("runner") not in DIRECT:
        return create_runner(name)
    from apache_beam.portability.api import beam_provision_api_pb2
    from apache_beam.runners.portability.fn_api_runner import fn_runner
    from apache_beam.runners.portability.portable_runner import JobServiceHandle

    told = JobServiceHandle.encode_pipeline_options(options.get_all_options())
    told = beam_provision_api_pb2.ProvisionInfo(pipeline_options=told)
    return fn_runner.FnApiRunner(provision_info=fn_runner.ExtendedProvisionInfo(told))


def last_line(error: BaseException) -> str:
    """What an error says at its end, where runners put what has happened in a worker."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = next((line for line in reversed(lines) if not line.startswith(("[", "~", "^"))), type(error).__name__)
    return f"{text[:300].rstrip('.')}."
