"""What every script does around its work: unusable input ends in one paragraph and exit code 2, without a traceback."""

import difflib
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.errors import HydraException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cyclical_lr.habits import HABITS
from cyclical_lr.processes import FAILED, STOPPED, UNUSABLE
from cyclical_lr.records import ConfigError

VALUED = (
    *("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn"),
    *("--package", "-p", "--experimental-rerun"),
)
"""Options of Hydra's whose value is the next argument."""
INPUT_ERRORS = (ConfigError, HydraException, OmegaConfBaseException, yaml.YAMLError)


def guarded(main: Callable[..., Any], *arguments: Any) -> int:
    """Call `main`; the exit code, its own if it returns one. SystemExit and what is not about input pass through."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then leaves its errors to us
    os.environ["MPLBACKEND"] = "agg"  # figures are written and not shown
    logging.raiseExceptions = False  # nor is each line that nobody reads on, as in `| head`, worth a traceback
    if stranger := _of_another_checkout():
        return refuse(stranger)
    if params := next((a for a in sys.argv[1:] if a.lstrip("+").startswith("hydra.sweeper.params")), None):
        return refuse(
            f"{params}: Hydra takes them in a config file alone; put them into a card, or use {_run()}-m KEY=A,B"
        )
    try:
        code = main(*arguments)
        if sys.stdout is not None:
            sys.stdout.flush()
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        return STOPPED
    except BrokenPipeError:  # nobody reads on, as in `--help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more when it exits
        return FAILED
    except INPUT_ERRORS as error:
        return refuse(explained(error))
    except ValueError as error:  # Hydra's, before it knows which group
        if str(error).startswith("Config group override"):
            return refuse(f"a group takes a name, such as model=cifar10_full ({error}); --help lists them")
        if re.match(r"File .* does not exist|The --\w+ flag", str(error)):  # of --experimental-rerun, of --resolve
            return refuse(f"{error} --hydra-help shows Hydra's options")
        raise
    return code or 0


def _of_another_checkout() -> str:
    """Why the script that runs must not use this package; empty where both are of one checkout.

    A record names the commit of the package, while cards and scripts would be another's.
    """
    package, checkout = Path(__file__).resolve().parent, Path(sys.argv[0]).resolve().parent.parent
    theirs = checkout / "src" / package.name
    if not theirs.is_dir() or theirs == package:
        return ""
    return (
        f"{sys.argv[0]}: expected the package of its own checkout, Python found {package}; use "
        f"pip install -e {checkout}, or PYTHONPATH={checkout / 'src'}"
    )


def overrides_first(arguments: Sequence[str]) -> list[str]:
    """The same arguments with the overrides before the options: argparse, Hydra's too, takes them in one piece."""

    def is_override(position: int) -> bool:
        argument, before = arguments[position], arguments[position - 1] if position else ""
        return before not in VALUED and (argument.startswith("~") or ("=" in argument and argument[0] != "-"))

    positions = sorted(range(len(arguments)), key=lambda position: not is_override(position))
    return [arguments[position] for position in positions]


def about(file: Path) -> str:
    """The first line that a config file says of itself, for --help."""
    comments = (line.lstrip("# ") for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("#"))
    return next((line for line in comments if line and not line.startswith("@package")), "")


def _paths(node: Any, path: str = "") -> Iterator[str]:
    """The keys of a config at any depth, as overrides spell them."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        below = f"{path}.{key}" if path else str(key)
        yield below
        yield from _paths(value, below)


def _run() -> str:
    """The script that has Hydra's options, where this one has none."""
    return "" if Path(sys.argv[0]).name in ("run.py", "report.py") else "scripts/run.py "


def refuse(message: str) -> int:
    """Print the message as an error; the exit code."""
    print(f"error: {message}", file=sys.stderr)
    return UNUSABLE


def explained(error: Exception) -> str:
    """An error about input in one paragraph: Hydra's own has a page of options, or an advice that does not fit here."""
    text = str(error)
    if isinstance(error, ConfigError):
        return text
    if found := re.search(r"Could not find '([^']+)/([^'/]*)'", text):
        group, name = found.groups()
        options = [option for option in re.findall(r"^\t(\S+)$", text, re.MULTILINE) if "=" not in option]
        close = difflib.get_close_matches(name, options, 3)
        few = f"{_run()}--help lists those that there are"
        few = f"expected one of {', '.join(options)}" if len(options) <= 12 else few
        few += "; a card of your own needs --config-dir FOLDER" if group == "experiment" else ""
        if group.startswith("experiment/"):  # a card's defaults list looks beside the card
            few = f"a card says `override /{group.partition('/')[2]}: {name}`"
        meant = f"did you mean {' or '.join(close)}?" if close else few
        return f"{group}: there is no {name!r}; {meant}"
    if found := re.search(r"Error parsing override '([^']*)'\s+missing EQUAL", text):
        return f"{found[1]}: expected KEY=VALUE, such as +experiment=cifar10_tri2; --help lists what there is"
    if found := re.search(r"Could not override '([^']+)'\.\s+To append to your config", text):
        # OmegaConf's error knows how far the key led.
        there = getattr(error.__cause__, "parent_node", None) or OmegaConf.create()
        key = str(getattr(error.__cause__, "key", ""))
        close = difflib.get_close_matches(key, map(str, there), 1)
        whole = OmegaConf.to_container(there._get_root(), resolve=False)
        close = close or [path for path in _paths(whole) if path.endswith(f".{key}") and not path.startswith("hydra.")]
        meant = f"did you mean {' or '.join(close)}? " if close else ""
        if found[1] in HABITS:
            return f"{found[1]}: there is no such key; {HABITS[found[1]]}"
        shown = f"{_run()}--cfg {'hydra' if found[1].startswith('hydra.') else 'job'}"
        return f"{found[1]}: there is no such key; {meant}{shown} after your other arguments shows all there are"
    if found := re.search(r"Ambiguous value for argument '(.*)'\n", text):
        key = found[1].partition("=")[0]
        if key.lstrip("+") in ("experiment", "model", "data", "solver", "schedule", "trainer", "logger", "cluster"):
            return f"{found[1]}: expected one name; scripts/run.py sweeps over several with -m"
        return (
            f"{found[1]}: expected one value; put text in quotes of its own ('{key}=\"a, b\"') and a list in brackets "
            f"({key}=[a,b]); scripts/run.py sweeps over several with -m"
        )
    if isinstance(error, OverrideParseException):
        key = error.override.partition("=")[0]
        if re.search(r"\[\d+\]", key):
            dotted = re.sub(r"\[(\d+)\]", r".\1", key)
            return f"{key}: cannot be read; the items of a list have their number after a dot: {dotted}"
        return (
            f"{error.override}: cannot be read; close what is open, and put text with other signs than those of a "
            f"plain path in quotes of its own: '{key}=\"VALUE\"', with ~ written out"
        )
    if found := re.search(r"interpolation '\$\{(cluster\.\w+)\}': Value '(.*?)' .* could not be converted", text):
        units = {"cluster.time": " of minutes", "cluster.memory": " of GB"}.get(found[1], "")
        return f"{found[1]}: expected a whole number{units}, got {found[2]!r}; see conf/cluster/slurm.yaml"
    if found := re.search(r"In '([^']+)': Overriding hydra.searchpath is only supported from the primary", text):
        if found[1] == "run":
            return (
                "--config-name: expected run, which looks for folders of one's own and cannot be part of another "
                "config; put what is yours into a card, or cluster/NAME.yaml, in a folder for --config-dir"
            )
        return f"{found[1]}: hydra.searchpath cannot stand in a card; use --config-dir FOLDER"
    if found := re.search(r"Error merging override (\S+?)=", text):
        return f"{found[1]}: there is no such key, or it takes no such value ({str(error.__cause__).splitlines()[0]})"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return "; ".join(line.rstrip(".") for line in lines if line.strip("^ ") and not line.startswith("See https:"))
