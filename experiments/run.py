"""The launcher: flags, seeds, the workdir, resuming, the report and exit codes around one experiment's `run`.

python -m experiments.run --config experiments/dpo.py:laptop --workdir runs/dpo
"""

import ast
import contextlib
import importlib
import importlib.util
import os
import pathlib
import random
import signal
import sys
import time
import traceback
import types

import ml_collections
import numpy as np
from absl import flags
from ml_collections import config_flags

from alignment import errors
from alignment.errors import InputError
from experiments.launch import emit, full_disk, sweeps
from experiments.launch import workdir as workdirs
from experiments.report import charts
from experiments.report import page as report

OK, CRASHED, BAD_INPUT, STOPPED, INTERRUPTED = 0, 1, 2, 75, 130

HELP = """\
usage: python -m experiments.run --config experiments/NAME.py[:SETTING] [--config.KEY=VALUE ...] [--workdir DIR] [...]

Runs one experiment. Killed, and started again with the same command, it goes on where its last checkpoint left off.

  --config FILE[:SETTING]   the experiment. Settings every one knows: tiny (seconds, to see that it works), laptop
                            (minutes on two cores, a result that means something), none (the real run).
  --config.KEY=VALUE        change a value, e.g. --config.objective.beta=0.3; with --help all keys are listed.
  --workdir DIR             where everything goes; default runs/NAME[-SETTING], runs/NAME[-SETTING]-sweep for a sweep.
  --distributed             one process of a multi-host run: calls jax.distributed.initialize() first.

  --sweep                   run all points of the experiment's sweep() here, one after the other; finished ones are
                            skipped, a failed one does not stop the rest. Each has a folder under --workdir.
  --sweep_index=I           run point I only; any scheduler that passes an integer can launch a sweep.
  --sweep_list              print the points as JSON lines.
  --emit=slurm|jobset       print an sbatch script or a Kubernetes JobSet of this run; with --sweep, of every point: an
                            array, or a JobSet each. Nothing is submitted; --workdir must be a folder all hosts share.
      --hosts=N             hosts of each run; more than one adds --distributed.
      --sbatch="time=4:00:00"         a #SBATCH line (slurm; repeatable); the log lies where sbatch is called
      --image=IMAGE --queue=NAME      container image; Kueue queue (jobset)
      --limits="google.com/tpu=4"     container resources (jobset; repeatable)
      --node_selector="KEY=VALUE"     (jobset; repeatable)

The workdir gets config.json, environment.json, metrics.jsonl, TensorBoard events, checkpoints/, summary.json,
report.html and, last of all, DONE. `python -m experiments.report DIR` builds the page of an unfinished run.

exit codes: 0 done; 2 something to put right (config, file, checkpoint, mesh, full disk), said in one message;
            1 crash (traceback here and in error.txt); 3 done, but more bad records than the experiment allows;
            75 stopped with all work saved (SIGTERM, a service that is down), start it again to go on.

Compiled programs are kept in ~/.cache/plumbline/jax; PLUMBLINE_JAX_CACHE=DIR moves that, PLUMBLINE_JAX_CACHE=off
turns it off, and JAX_COMPILATION_CACHE_DIR, where set, is left alone.

examples:
  python -m experiments.run --config experiments/dpo.py:tiny
  python -m experiments.run --config experiments/dpo.py:laptop --config.objective.beta=0.3 --workdir runs/beta
  python -m experiments.run --config experiments/dpo.py:laptop --sweep --workdir runs/betas
  python -m experiments.run --config experiments/dpo.py --sweep --emit=slurm --hosts=4 --sbatch=partition=gpu > job.sh
"""


class LiteralParser(flags.ArgumentParser):
    """A Python literal where the text is one, else the text: for values whose default, None, names no type."""

    def parse(self, argument):
        try:
            return ast.literal_eval(argument)
        except (SyntaxError, ValueError):
            return argument


config_flags.register_flag_parser_for_type(type(None), LiteralParser())


class Terminated(BaseException):
    """SIGTERM arrived while no training loop was there to save; not an Exception, so that nothing swallows it."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code; the only place that turns exceptions into codes."""
    argv = list(sys.argv[1:] if argv is None else argv)
    before = signal.signal(signal.SIGTERM, on_sigterm)  # before the experiment and what it needs is imported
    try:
        return launch(argv)
    except InputError as e:
        print(f"error: {e}", file=sys.stderr)
        return BAD_INPUT
    except Terminated:
        print("stopped by SIGTERM; start the same command again to go on", file=sys.stderr)
        return STOPPED
    except KeyboardInterrupt:
        print("\ninterrupted; start the same command again to go on from the last checkpoint", file=sys.stderr)
        return INTERRUPTED
    except Exception as e:
        if full_disk.is_full_disk(e):
            print(f"error: {e}; free some space and start the same command again", file=sys.stderr)
            return BAD_INPUT
        traceback.print_exc()
        return CRASHED
    finally:
        signal.signal(signal.SIGTERM, before)


def launch(argv: list[str]) -> int:
    """Read the flags, then do the one thing they ask for."""
    if not argv or any(a in ("--help", "-help", "-h", "--helpfull") for a in argv):
        return show_help(argv)
    target, rest = split_config(argv)
    use_compilation_cache()
    module, name, setting = load_experiment(target)
    config = make_config(module, target, setting)
    options = parse_flags(config, rest)
    label = f"{name}-{setting}" if setting else name
    is_sweep = options.sweep or options.sweep_list or options.sweep_index is not None
    folder = options.workdir or os.path.join("runs", f"{label}-sweep" if is_sweep else label)
    if not is_sweep:
        if options.emit:
            print(emit.render(options, [], label, folder, argv), end="")
            return OK
        return run_once(module, name, config, folder, options.distributed, argv)

    points = sweep_points(module, name, config, rest)
    configs = [sweeps.apply(config, point.overrides) for point in points]  # every override is checked before any runs
    if options.sweep_index is not None:
        if not 0 <= options.sweep_index < len(points):
            raise InputError(f"--sweep_index={options.sweep_index}: the sweep has points 0 to {len(points) - 1}")
        points, configs = [points[options.sweep_index]], [configs[options.sweep_index]]
    if options.sweep_list:
        print("\n".join(sweeps.listing(points, folder)))
        return OK
    if options.emit:
        print(emit.render(options, points, label, folder, argv), end="")
        return OK
    for point, changed in zip(points, configs):
        workdirs.check(point.workdir(folder), workdirs.plain(changed), name)
    return run_sweep(module, name, points, configs, folder, options, argv)


def run_sweep(module, name, points, configs, folder, options, argv) -> int:
    """All points in turn, or the one of `--sweep_index`; then the page that compares what is finished."""
    if options.sweep_index is None:
        sweeps.write_index(points, folder, name)
        rest = [a for a in argv if a.lstrip("-") not in ("sweep", "sweep=true")]
        code = sweeps.run_all(points, folder, rest, say)
    else:
        code = run_once(module, name, configs[0], points[0].workdir(folder), options.distributed, argv)
    if process_index() == 0:
        every = sweep_points(module, name, configs[0], [])
        sweeps.write_index(every, folder, name)
        if hasattr(module, "compare"):  # the experiment's own tables over its points
            module.compare(folder)
        say(f"comparison: {report.compare(folder)}")
    return code


def sweep_points(module, name: str, config, arguments: list[str]) -> list[sweeps.Point]:
    """The experiment's points; a value set on the command line and swept over as well is refused."""
    if not hasattr(module, "sweep"):
        raise InputError(f"{name} defines no sweep(); add one that yields dicts of dotted overrides")
    points = sweeps.points(module.sweep())
    for point in points:
        for key in point.overrides:
            sweeps.require_key(config, key, "sweep()")
            if any(a.lstrip("-").split("=")[0] == f"config.{key}" for a in arguments):
                raise InputError(f"--config.{key} is what sweep() varies; leave it out, or run without the sweep")
    return points


def run_once(module, name: str, config: ml_collections.ConfigDict, workdir: str, distributed: bool, argv) -> int:
    """One run in one folder: guarded, seeded, resumed by simply calling `run` again, and marked DONE at the end."""
    resolved = workdirs.plain(config)
    workdirs.check(workdir, resolved, name)
    if is_finished(workdir):
        return finished_verdict(module, workdir)
    start_distributed(distributed)
    seed = int(config.get("seed", 0))
    random.seed(seed)
    np.random.seed(seed % 2**32)
    full_disk.say_once()
    held = None
    try:
        if process_index() == 0:
            workdirs.make(workdir)
            held = workdirs.lock(workdir)
            workdirs.check(workdir, resolved, name)  # again: another start may have ended since
            if is_finished(workdir):
                return finished_verdict(module, workdir)
        return guarded_run(module, name, config, resolved, workdir, argv)
    finally:
        if held is not None:
            held.close()


def is_finished(workdir: str) -> bool:
    """Whether there is nothing left to do; then its summary is shown."""
    if not workdirs.is_done(workdir):
        return False
    say(f"{workdir} is finished already")
    show_summary(workdirs.read_json(os.path.join(workdir, "summary.json")) or {})
    return True


def verdict(module, summary: dict[str, float | None]) -> int:
    """The exit code of a finished run: what the experiment's `exit_code(summary)` says, where it has one, and why."""
    code, why = module.exit_code(summary) if hasattr(module, "exit_code") else (OK, "")
    if why:
        say(why)
    return code


def finished_verdict(module, workdir: str) -> int:
    return verdict(module, workdirs.read_json(os.path.join(workdir, "summary.json")) or {})


def guarded_run(module, name, config, resolved, workdir: str, argv) -> int:
    """Write what the launcher owns around `run`; how the run ended goes into environment.json, whatever happened."""
    is_writer = process_index() == 0
    started = time.monotonic()
    record = None

    def close(outcome: str, error: str = "") -> None:
        with contextlib.suppress(OSError):  # on a full disk the reason for the end matters more than its record
            if is_writer and record is not None:
                workdirs.finish(workdir, record, outcome, time.monotonic() - started, is_used=outcome != "refused")
            if error:
                pathlib.Path(workdir, "error.txt").write_text(error, encoding="utf-8")

    try:
        if is_writer:
            workdirs.write_json(os.path.join(workdir, "config.json"), resolved)
            record = workdirs.begin(workdir, name, argv)
        summary = workdirs.numbers(module.run(config, workdir))
        if is_writer:
            workdirs.write_json(os.path.join(workdir, "summary.json"), summary)
            close("done")
            page = report.build(workdir)
            pathlib.Path(workdir, "error.txt").unlink(missing_ok=True)
            workdirs.write_text(os.path.join(workdir, "DONE"), workdirs.now() + "\n")
            show_summary(summary)
            say(f"report: {page}")
        return verdict(module, summary)
    except (Terminated, KeyboardInterrupt) as e:
        close("stopped" if isinstance(e, Terminated) else "interrupted")
        raise
    except InputError:
        close("refused")
        raise
    except Exception as e:
        if is_stop(e):
            close("stopped")
            say(f"{str(e) or 'stopped'}; all work is saved in {workdir}, start the same command again to go on")
            return STOPPED
        if full_disk.is_full_disk(e):
            close("full disk")
            raise InputError(full_disk.message(e, workdir)) from e
        close("crashed", traceback.format_exc())
        raise


def is_stop(error: BaseException) -> bool:
    """Whether the work ended early, because it was asked to or could not go on, after saving."""
    return isinstance(error, errors.Stopped)


def on_sigterm(number: int, frame: types.FrameType | None) -> None:
    """Ask an active training loop to save and stop; without one, or the second time, go at once."""
    loop = sys.modules.get("alignment.train.loop")
    active, stop = getattr(loop, "ACTIVE", False), getattr(loop, "STOP", None)
    active = active.is_set() if hasattr(active, "is_set") else bool(active)
    if not active or stop is None or stop.is_set():
        raise Terminated
    stop.set()


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
    if not target:
        raise InputError("--config is missing; e.g. --config experiments/dpo.py:laptop (--help says more)")
    return target, rest


def load_experiment(target: str) -> tuple[types.ModuleType, str, str]:
    """Import the experiment's file once, for its config, its sweep and its run alike -> (module, name, setting)."""
    file, _, setting = target.partition(":")
    path = pathlib.Path(file)
    if not path.is_file():
        here = sorted(str(p) for p in path.parent.glob("*.py") if "\ndef get_config" in p.read_text(errors="ignore"))
        raise InputError(
            f"--config={target}: there is no file {file}; found: {', '.join(here) or 'no experiment there'}"
        )
    if path.resolve().parent == pathlib.Path(__file__).resolve().parent:
        module = importlib.import_module(f"experiments.{path.stem}")
    else:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None:
            raise InputError(f"--config={target}: {file} is not a Python file")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    missing = [f for f in ("get_config", "run") if not callable(getattr(module, f, None))]
    if missing:
        raise InputError(f"--config={target}: {file} defines no {' and no '.join(missing)}, so it is not an experiment")
    return module, path.stem, setting


def make_config(module, target: str, setting: str) -> ml_collections.ConfigDict:
    try:
        return module.get_config(setting).lock()
    except ValueError as e:  # an unknown setting; the experiment's message names those it knows
        raise InputError(f"--config={target}: {e}") from e


def parse_flags(config: ml_collections.ConfigDict, arguments: list[str]) -> flags.FlagValues:
    """Apply `--config.key=value` to the config in place and return the launcher's own flags."""
    for argument in arguments:
        key = argument.lstrip("-").split("=")[0]
        for prefix in ("config.", "noconfig."):
            if argument.startswith("-") and key.startswith(prefix):
                sweeps.require_key(config, key.removeprefix(prefix), argument)
    values = flags.FlagValues()
    own = {"flag_values": values}
    flags.DEFINE_string("workdir", "", "", **own)
    flags.DEFINE_bool("distributed", False, "", **own)
    flags.DEFINE_bool("sweep", False, "", **own)
    flags.DEFINE_integer("sweep_index", None, "", **own)
    flags.DEFINE_bool("sweep_list", False, "", **own)
    flags.DEFINE_enum("emit", None, ["slurm", "jobset"], "", **own)
    emit.define_flags(values)
    try:
        config_flags.DEFINE_config_dict("config", config, sys_argv=["run", *arguments], **own)
        left = values(["run", *arguments])[1:]
    except (flags.Error, KeyError, TypeError, ValueError) as e:
        raise InputError(f"{e.args[0] if e.args else e}; --help lists the flags") from e
    if left:
        raise InputError(f"{left[0]!r} is no flag; values are set as --config.key=value (--help says more)")
    flags.FLAGS.mark_as_parsed()  # libraries that read absl's global flags expect them parsed
    return values


def show_help(argv: list[str]) -> int:
    """The usage, and below it the keys of the experiment when one is named."""
    print(HELP, end="")
    asked = [a for a in argv if a not in ("--help", "-help", "-h", "--helpfull")]
    if asked:
        module, name, setting = load_experiment(split_config(asked)[0])
        doc = (module.__doc__ or "").strip()
        print(f"\n{name}: {doc}\n\nkeys of {name}{':' if setting else ''}{setting}:")
        for key, value in workdirs.flatten(workdirs.plain(make_config(module, name, setting))).items():
            print(f"  --config.{key}={value}")
    return OK


def start_distributed(asked: bool) -> None:
    """Join a multi-host run when asked to, by flag or by a coordinator's address in the environment.

    Without arguments JAX finds Slurm, Open MPI, Cloud TPU and GKE by itself. Where all three of
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID are set, they are what it is told.
    """
    if not asked and not os.environ.get("JAX_COORDINATOR_ADDRESS"):
        return
    import jax

    names = {"num_processes": "JAX_NUM_PROCESSES", "process_id": "JAX_PROCESS_ID"}
    told = {argument: int(os.environ[name]) for argument, name in names.items() if os.environ.get(name)}
    try:
        jax.distributed.initialize(**(told if len(told) == len(names) else {}))
    except ValueError as e:
        raise InputError(
            f"--distributed: {e} Start it with srun or mpirun, on a TPU slice, or set JAX_COORDINATOR_ADDRESS, "
            "JAX_NUM_PROCESSES and JAX_PROCESS_ID."
        ) from e


def process_index() -> int:
    """Number of this process in a multi-host run; 0 without touching JAX when there is one process."""
    jax = sys.modules.get("jax")
    return jax.process_index() if jax is not None and jax.distributed.is_initialized() else 0


def use_compilation_cache() -> None:
    """Keep compiled programs between starts, one folder for each kind of CPU, unless the environment says otherwise.

    A cached program is the very one that was compiled, so results do not depend on whether it came from the cache.
    """
    asked = os.environ.get("PLUMBLINE_JAX_CACHE", "")
    if asked.lower() in ("off", "0", "none") or "JAX_COMPILATION_CACHE_DIR" in os.environ or "jax" in sys.modules:
        return
    root = pathlib.Path(asked) if asked else pathlib.Path.home() / ".cache" / "plumbline" / "jax"
    try:
        folder = workdirs.cache_folder(root)
    except OSError:  # no home, or a read-only one: compile again each time
        return
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")


def show_summary(summary: dict[str, float | None]) -> None:
    width = max(map(len, summary), default=0)
    for name, value in sorted(summary.items(), key=lambda item: charts.rank(item[0])):
        print(f"{name:{width}}  {report.number(value)}")


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
