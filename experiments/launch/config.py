"""From the command line to an experiment, its config with every override in, and the launcher's own flags."""

import ast
import dataclasses
import functools
import importlib
import importlib.util
import inspect
import os
import pathlib
import re
import sys
import types
from collections.abc import Mapping
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags

from alignment import errors, files
from alignment.errors import InputError
from experiments.launch import emit, sweeps
from experiments.launch import workdir as workdirs

HOME = pathlib.Path(__file__).resolve().parents[1]  # the installed package `experiments`
HELP_FLAGS = ("--help", "-help", "-h", "--helpfull")

HELP = pathlib.Path(__file__).with_name("usage.txt").read_text(encoding="utf-8")


class LiteralParser(flags.ArgumentParser):
    """A Python literal where the text is one, else the text: for values whose default, None, names no type."""

    def parse(self, argument: str) -> Any:
        try:
            return ast.literal_eval(argument)
        except (SyntaxError, ValueError):
            return argument


class OptionalParser(flags.ArgumentParser):
    """A number, or None for a leaf that may be unset (`config_dict.placeholder`)."""

    def __init__(self, parser: flags.ArgumentParser):
        super().__init__()
        self.syntactic_help, self._parser = parser.syntactic_help, parser

    def parse(self, argument: str) -> Any:
        return None if argument == "None" else self._parser.parse(argument)


config_flags.register_flag_parser_for_type(type(None), LiteralParser())
config_flags.register_flag_parser_for_type(int, OptionalParser(flags.IntegerParser()))
config_flags.register_flag_parser_for_type(float, OptionalParser(flags.FloatParser()))


@dataclasses.dataclass(frozen=True)
class Experiment:
    """An experiment's module, the name of its file, and the setting that follows the colon."""

    module: types.ModuleType
    name: str
    setting: str

    @property
    def label(self) -> str:
        """`dpo-laptop`, as in the default workdir."""
        return f"{self.name}-{self.setting}" if self.setting else self.name

    @property
    def is_server(self) -> bool:
        """Whether its run has no end of its own: it leaves no DONE, and any config may start in its folder again."""
        return bool(getattr(self.module, "IS_SERVER", False))

    def config(self) -> ml_collections.ConfigDict:
        """Its locked config for the setting.

        Raises:
            InputError: the experiment lists its SETTINGS and this is not one of them, or it refuses it by ValueError.
        """
        if hasattr(self.module, "SETTINGS"):
            errors.one_of(f"{self.name}: setting", self.setting, self.module.SETTINGS)
        try:
            return self.module.get_config(self.setting).lock()
        except ValueError as e:
            raise InputError(f"--config={self.name}:{self.setting}: {e}") from e

    def defaults(self) -> dict[str, Any]:
        """Its plain config without overrides, by which a key that an older run lacks is known to be at its default."""
        return workdirs.plain(self.config())

    def points(self, config: ml_collections.ConfigDict, arguments: list[str]) -> list[sweeps.Point]:
        """The points of its sweep; a value set on the command line and swept over as well is refused."""
        if not hasattr(self.module, "sweep"):
            raise InputError(f"{self.name} defines no sweep(); add one that yields dicts of dotted overrides")
        sweep = self.module.sweep  # it may read the config, as where a setting lists what is swept over
        points = sweeps.points(sweep(config) if inspect.signature(sweep).parameters else sweep())
        for key in sorted({key for point in points for key in point.overrides}):
            sweeps.require_key(config, key, "sweep()")
            if any(a.lstrip("-").split("=")[0] == f"config.{key}" for a in arguments):
                raise InputError(f"--config.{key} is what sweep() varies; leave it out, or run without the sweep")
        return points

    def has_more(self, config: ml_collections.ConfigDict, workdir: str) -> bool:
        """Whether a finished run is to go on, as its `has_more(c, summary)` says, where it has one."""
        if not hasattr(self.module, "has_more"):
            return False
        summary = workdirs.read_json(os.path.join(workdir, "summary.json")) or {}
        return bool(self.module.has_more(config, summary))

    def verdict(self, summary: Mapping[str, float | None]) -> tuple[int, str]:
        """The exit code of a finished run and why: what its `exit_code(summary)` says, where it has one, else 0."""
        return self.module.exit_code(summary) if hasattr(self.module, "exit_code") else (0, "")

    def describe(self, workdir: str, summary: Mapping[str, float | None]) -> None:
        """Leave about.json, which the run's page shows: `headline(summary)` and METRICS, where the experiment has them.

        The page is built from the folder alone, so that it can be built again without the experiment's file. Where the
        sentence needs a number that is missing or not finite, the page's own default takes its place.
        """
        finite = {name: value for name, value in summary.items() if value is not None}
        try:
            headline = self.module.headline(finite) if hasattr(self.module, "headline") else ""
        except KeyError:
            headline = ""
        metrics = {name: list(meaning) for name, meaning in getattr(self.module, "METRICS", {}).items()}
        if headline or metrics:
            files.write_json(os.path.join(workdir, "about.json"), {"headline": headline, "metrics": metrics})


def wants_help(argv: list[str]) -> bool:
    return not argv or any(a in HELP_FLAGS for a in argv)


def help_text(argv: list[str]) -> str:
    """The usage, and below it the keys of the experiment if one is named."""
    rest = [a for a in argv if a not in HELP_FLAGS]
    if not rest:
        return HELP
    experiment = load_experiment(split_config(rest)[0])
    colon = ":" if experiment.setting else ""
    doc = (experiment.module.__doc__ or "").strip()
    keys = workdirs.flatten(workdirs.plain(experiment.config()))
    listing = "".join(f"  --config.{key}={value}\n" for key, value in keys.items())
    return f"{HELP}\n{experiment.name}: {doc}\n\nkeys of {experiment.name}{colon}{experiment.setting}:\n{listing}"


def split_config(argv: list[str]) -> tuple[str, list[str]]:
    """Take `--config FILE` (or `--config=FILE`) out of the arguments, which config_flags then reads the rest of."""
    rest, target, i = [], None, 0
    while i < len(argv):
        key, equals, value = argv[i].partition("=")
        if key in ("--config", "-config"):
            if not equals:
                i += 1
                value = argv[i] if i < len(argv) else ""
            target = value
        else:
            rest.append(argv[i])
        i += 1
    if not target:  # config_flags cannot be left to read it: it would load the file by itself, a second time
        raise InputError("--config is missing; e.g. --config experiments/dpo.py:laptop (--help says more)")
    return target, rest


def load_experiment(target: str) -> Experiment:
    """Import an experiment's file once, for its config, its sweep and its run alike.

    Args:
        target: `FILE[:SETTING]` or `NAME[:SETTING]`. A file that exists comes first, so an experiment of one's own
            may bear the name of one of ours; `dpo` and `experiments/dpo.py` otherwise mean the installed one.
    """
    file, _, setting = target.partition(":")
    path = _locate(file)
    module = importlib.import_module(f"experiments.{path.stem}") if path.parent == HOME else _import_file(path)
    missing = [f for f in ("get_config", "run") if not callable(getattr(module, f, None))]
    if missing:
        raise InputError(f"--config={target}: {file} defines no {' and no '.join(missing)}, so it is not an experiment")
    return Experiment(module, path.stem, setting)


def _locate(file: str) -> pathlib.Path:
    """The experiment's file: as it is written, or that of the installed package."""
    path = pathlib.Path(file)
    if path.is_file():
        if path.suffix != ".py":
            raise InputError(f"--config={file} is not a Python file")
        return path.resolve() if path.resolve().parent == HOME else path.absolute()
    if path.parent.name in ("", "experiments"):
        installed = HOME / f"{path.stem}.py"
        if installed.is_file():
            return installed
    if file.isidentifier():
        errors.one_of("--config", file, experiments_in(HOME), hint="or give the path of a file of your own")
    listing = ", ".join(str(path.parent / f"{name}.py") for name in experiments_in(path.parent))
    raise InputError(
        f"--config={file}: there is no such file; {f'that folder has {listing}, and ' if listing else ''}"
        f"Plumbline has {', '.join(experiments_in(HOME))}"
    )


def experiments_in(folder: pathlib.Path) -> list[str]:
    """Names of the experiments in a folder: the files that define `get_config`."""
    return sorted(p.stem for p in folder.glob("*.py") if "\ndef get_config" in p.read_text(errors="ignore"))


def _import_file(path: pathlib.Path) -> types.ModuleType:
    """Import a file from anywhere; what lies beside it can be imported too, after everything that is installed."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    sys.modules.setdefault(path.stem, module)  # dataclasses and pickle look a class up by the name of its module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        if sys.modules.get(path.stem) is module:
            del sys.modules[path.stem]
        raise
    return module


def _leaves_unset(config: ml_collections.ConfigDict, argument: str) -> bool:
    """Whether the argument is `--config.KEY=None` for a value that is None anyway.

    absl would refuse it: a placeholder is parsed by the type of its values, and those parsers take no None.
    """
    key, _, value = argument.lstrip("-").partition("=")
    if value != "None" or not key.startswith("config."):
        return False
    return functools.reduce(getattr, key.split(".")[1:], config) is None


def _refuse_several(config: ml_collections.ConfigDict, key: str, argument: str) -> None:
    """Refuse a list of values for a number or a switch, which is a sweep in other launchers."""
    value = functools.reduce(getattr, key.split("."), config)
    text = argument.partition("=")[2]
    is_list = "," in text or text.startswith(("[", "(", "range("))
    if isinstance(value, (bool, int, float)) and is_list:
        first = re.sub(r"[\[\]()]", "", text).split(",")[0].strip() or "..."
        raise InputError(
            f"{argument}: a run takes one value of {key}. To try several, let sweep() in a copy of the experiment's "
            f"file yield them, as {{'{key}': {first}}}, and start that file with --sweep; or start "
            "one run a value, each with a --workdir of its own"
        )


def parse_flags(config: ml_collections.ConfigDict, arguments: list[str]) -> flags.FlagValues:
    """Apply `--config.key=value` to the config in place and return the launcher's own flags."""
    for argument in arguments:
        key = argument.lstrip("-").split("=")[0]
        for prefix in ("config.", "noconfig."):
            if argument.startswith("-") and key.startswith(prefix):
                sweeps.require_key(config, key.removeprefix(prefix), argument)
                if argument.endswith("=None") and not sweeps.may_be_unset(config, key.removeprefix(prefix)):
                    raise InputError(f"{argument}: {key.removeprefix(prefix)} cannot be unset; give it a value")
                _refuse_several(config, key.removeprefix(prefix), argument)
    arguments = [argument for argument in arguments if not _leaves_unset(config, argument)]
    # A set of flags of its own: absl's global one would still hold the flags of an earlier call in this process.
    values = flags.FlagValues()
    own = {"flag_values": values}
    flags.DEFINE_string("workdir", "", "", **own)
    flags.DEFINE_bool("distributed", False, "", **own)
    flags.DEFINE_bool("sweep", False, "", **own)
    flags.DEFINE_list("sweep_index", None, "", **own)
    flags.DEFINE_bool("sweep_apart", False, "", **own)
    flags.DEFINE_integer("sweep_batched", None, "", lower_bound=2, **own)
    flags.DEFINE_bool("sweep_list", False, "", **own)
    flags.DEFINE_enum("emit", None, ["slurm", "jobset"], "", **own)
    flags.DEFINE_integer("profile", None, "", lower_bound=1, **own)
    flags.DEFINE_bool("doctor", False, "", **own)
    flags.DEFINE_string("plan", "", "", **own)
    flags.DEFINE_string("plan_model", "", "", **own)
    flags.DEFINE_float("plan_utilisation", 0.4, "", **own)
    flags.DEFINE_float("plan_price", None, "", lower_bound=0.0, **own)
    flags.DEFINE_integer("plan_programs", 4, "", lower_bound=1, **own)
    emit.define_flags(values)
    try:
        config_flags.DEFINE_config_dict("config", config, sys_argv=["run", *arguments], **own)
        unread = values(["run", *arguments])[1:]
    except (flags.Error, KeyError, TypeError, ValueError) as e:
        raise InputError(f"{e.args[0] if e.args else e}; --help lists the flags") from e
    if unread:
        raise InputError(f"{unread[0]!r} is not a flag; values are set as --config.key=value (--help says more)")
    flags.FLAGS.mark_as_parsed()  # libraries that read absl's global flags expect them parsed
    return values
