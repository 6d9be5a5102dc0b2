"""Command lines and YAML files to one dataclass per command (jsonargparse), with every problem in one message."""

import difflib
import re
import sys
from argparse import ArgumentError, RawDescriptionHelpFormatter
from dataclasses import asdict, fields
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_type_hints

import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter, set_loader, set_parsing_settings

from utils import errors
from utils.errors import InputError


class _Loader(yaml.SafeLoader):
    """YAML without dates and base-60 integers, so that 7:10 stays the range that it is, and without aliases."""

    def compose_node(self, parent: yaml.Node | None, index: object) -> yaml.Node:
        """Refuse aliases: settings need none, and a few lines of them stand for gigabytes."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "aliases are not allowed", self.peek_event().start_mark)
        return super().compose_node(parent, index)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":timestamp", ":int", ":float"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class _Dumper(yaml.SafeDumper):
    """YAML that quotes every string which _Loader or YAML 1.1 would read back as something else, such as 1e3."""


_NUMBERS = {"int": r"^[-+]?[0-9]+$", "float": r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$"}
for _tag, _pattern in _NUMBERS.items():
    yaml.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list("-+.0123456789"), _Loader, _Dumper
    )
set_loader("mtgrec", lambda stream: yaml.load(stream, Loader=_Loader), exceptions=(yaml.YAMLError,))
set_parsing_settings(docstring_parse_attribute_docstrings=True)


class _HelpFormatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keeps the lines of the description: its examples are to be copied."""


# Flags that say what to do with a folder, not what the run is.
HANDLING_FLAGS = ("overwrite", "reuse", "resume")

# What a flag that takes epochs accepts: 7, [7,9], 9976:10000 (both ends included), [1:3,7]. Types are tried in this
# order; int comes last because the library's reading of an int is base 60, 430 for 7:10.
Epochs = str | list[str | int] | int

_WANTED = {int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "null"}
_WANTED |= {list[int]: "a list of whole numbers such as [1,2]", list[str]: "a list of names such as [a,b]"}

Config = TypeVar("Config")  # a dataclass whose `problems()` names everything that is wrong with the settings


def make_parser(config_class: type, prog: str, description: str) -> ArgumentParser:
    """Build the command-line parser of a dataclass: one `--flag` per field, and `--config_file` for a YAML file."""
    layout = {"prog": prog, "description": description, "formatter_class": _HelpFormatter}
    parser = ArgumentParser(**layout, exit_on_error=False, parser_mode="mtgrec", allow_abbrev=False)
    parser.add_argument("--config_file", action="config", help="YAML file of flags; later flags override it")
    parser.add_argument("--debug", type=bool, default=False, help="Show an error's traceback instead of one sentence.")
    parser.add_class_arguments(config_class, as_group=False)
    return parser


def parse_config(
    config_class: type[Config], argv: list[str] | None, prog: str, description: str
) -> tuple[Config, set[str]]:
    """Read a command line, by default sys.argv, into a configuration.

    Returns:
        The configuration, and the names of the fields that were given rather than defaulted.

    Raises:
        InputError: Unknown flags, wrong types or inconsistent values; all problems in one message.
    """
    parser = make_parser(config_class, prog, description)
    argv = _with_bare_switches(sys.argv[1:] if argv is None else argv, config_class)
    try:
        given = parser.parse_args(argv, defaults=False)
        values = parser.parse_args(argv)
    except UnicodeDecodeError as error:
        raise InputError(f"the file of --config_file is not UTF-8: {error}") from None
    except (ArgumentError, RecursionError) as error:
        raise InputError(_explain(str(error), config_class)) from None
    errors.show_traceback = values["debug"]
    hints = get_type_hints(config_class)
    empty = [name for name, hint in hints.items() if values[name] is None and type(None) not in get_args(hint)]
    if empty:  # the library takes null for any setting
        raise InputError("; ".join(f"{name} needs a value, not null" for name in empty))
    names = {field.name for field in fields(config_class)}
    config = config_class(**{name: values[name] for name in names})
    if problems := config.problems():
        raise InputError("; ".join(problems))
    return config, {name for name in names if name in given}


def _with_bare_switches(argv: list[str], config_class: type) -> list[str]:
    """Let `--overwrite` alone mean `--overwrite=true`, for every boolean field."""
    switches = {"--debug", *(f"--{field.name}" for field in fields(config_class) if field.type is bool)}
    pairs = zip(argv, [*argv[1:], "--"], strict=False)
    return [f"{flag}=true" if flag in switches and following[:2] in ("", "--") else flag for flag, following in pairs]


def _explain(message: str, config_class: type) -> str:
    """Turn the parser's message into one sentence: what a flag takes, or near matches for one that does not exist."""
    if wrong := re.match(r'Parser key "(\w+)":.*\b(?:Got|Given) value: (.*)', message, re.DOTALL):
        name, value = wrong.groups()
        hint = get_type_hints(config_class).get(name)  # None: a flag of every command
        kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
        if set(kinds) <= _WANTED.keys():
            return f"{name}={value.strip()} must be {' or '.join(_WANTED[kind] for kind in kinds)}"
    unknown = re.findall(r"--[\w-]+", message) if "unrecognized arguments" in message else []
    if not unknown:
        return " ".join(message.split())
    parts = []
    for flag in unknown:
        near = difflib.get_close_matches(flag[2:], [field.name for field in fields(config_class)], n=1)
        parts.append(f"unknown flag {flag}" + (f" (did you mean --{near[0]}?)" if near else ""))
    return "; ".join([*parts, "--help lists the flags"])


def dump_config(config: Any, without: tuple[str, ...] = ()) -> str:
    """Return the configuration, but for the fields named in `without`, as YAML that `--config_file` reads back."""
    settings = {name: value for name, value in asdict(config).items() if name not in without}
    return yaml.dump(settings, Dumper=_Dumper, sort_keys=False)


def expand_epochs(value: Epochs | None) -> list[int] | None:
    """Expand what a flag of epochs accepts into a list: 7, [7, 9], "9976:10000" (inclusive), ["1:3", 7].

    InputError where something is neither a number nor a range from low to high, or the list is empty.
    """
    if value is None:
        return None
    epochs: list[int] = []
    for part in value if isinstance(value, list) else str(value).strip("[]").split(","):
        match = re.fullmatch(r"(\d+)(?::(\d+))?", str(part).strip())
        if not match:
            raise InputError(f"{part!r} is not an epoch or an inclusive range such as 9976:10000")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise InputError(f"the range {part} runs backwards; write {last}:{first}")
        epochs.extend(range(first, last + 1))
    if len(set(epochs)) != len(epochs):
        raise InputError(f"the list of epochs {value} names an epoch twice")
    if not epochs:
        raise InputError("the list of epochs is empty")
    return epochs
