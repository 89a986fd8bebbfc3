"""The launcher: flags, seeds, the workdir, resuming, the report and exit codes around one experiment's `run`.

python -m experiments.run --config experiments/dpo.py:laptop --workdir runs/dpo
"""

from experiments.launch import host

if __name__ == "__main__":  # the imports below take seconds from a cold disk, and a scheduler may stop the job then
    host.stop_at_once()

import contextlib
import functools
import gc
import os
import pathlib
import random
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections
import numpy as np
from absl import flags

from alignment import errors, files
from alignment.errors import InputError
from experiments.launch import checks, emit, full_disk, once, sweeps
from experiments.launch import config as configs
from experiments.launch import workdir as workdirs
from experiments.report import charts, markup, page

PEER_WAIT = 5.0  # seconds in which the death of a peer explains an exception
OK, CRASHED, BAD_INPUT, STOPPED, INTERRUPTED = 0, 1, 2, host.STOPPED, 130


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code; the only place that turns exceptions into codes."""
    argv = list(sys.argv[1:] if argv is None else argv)
    with host.stop_signals():  # before the experiment and what it needs is imported
        code, why = coded(lambda: launch(argv))
        host.stop_is_heard()
        if why:
            print(why, file=sys.stderr)
        host.leave(code, why.removeprefix("error: "))  # last: the others of a run of several processes follow
    return code


def coded(run_fn: Callable[[], int]) -> tuple[int, str]:
    """The exit code of a command line or of one run, and one message for a person where it did not end well."""
    try:
        return run_fn(), ""
    except InputError as e:
        return BAD_INPUT, f"error: {e}"
    except host.Terminated as e:
        return STOPPED, f"stopped by {e}; start the same command again to go on"
    except errors.Stopped as e:
        return STOPPED, f"{e}; start the same command again"
    except host.PeerEnded as e:
        return e.code, f"stopped: {e}"
    except KeyboardInterrupt:
        return INTERRUPTED, "\ninterrupted; start the same command again to go on from the last checkpoint"
    except Exception as e:
        if full_disk.is_full_disk(e):
            return BAD_INPUT, f"error: {e}; free some space and start the same command again"
        if why := full_disk.unusable(e):
            return BAD_INPUT, f"error: {why}"
        if "Unable to initialize backend" in str(e):
            return BAD_INPUT, f"error: JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}: {e}"
        traceback.print_exc()
        return CRASHED, ""


def launch(argv: list[str]) -> int:
    """Read the command line, then help, print a job, or run once or a sweep."""
    if configs.wants_help(argv):
        print(configs.help_text(argv), end="")
        return OK
    target, arguments = configs.split_config(argv)
    host.use_compilation_cache()
    experiment = configs.load_experiment(target)
    config = experiment.config()
    options = configs.parse_flags(config, arguments)
    is_sweep = options.sweep or options.sweep_list or options.sweep_index is not None
    checks.check_workdir(options.workdir)
    folder = options.workdir or os.path.join("runs", f"{experiment.label}-sweep" if is_sweep else experiment.label)
    if options.plan:
        if is_sweep or options.emit:
            raise InputError("--plan is of one config: leave --sweep, --sweep_index, --sweep_list and --emit out")
        from experiments.launch import planning  # with the networks, which other starts import with their experiment

        planning.show(experiment, config, options)
        return OK
    refuse_unread(options)
    if options.profile and (is_sweep or options.emit):
        raise InputError("--profile is of one run here: leave --sweep, --sweep_index, --sweep_list and --emit out")
    if options.doctor:
        if is_sweep or options.emit:
            raise InputError("--doctor is of one config: leave --sweep, --sweep_index, --sweep_list and --emit out")
        from experiments.launch import doctor

        doctor.show(experiment, config)
        return OK
    if is_sweep:
        return launch_sweep(experiment, config, folder, options, arguments, argv)
    if options.emit:
        print(emit.render(options, [], experiment.label, folder, argv), end="")
        return OK
    if not is_finished(experiment, config, folder):
        checks.check(experiment, config)
    if options.profile:
        from alignment.train import loop  # with JAX, which an experiment that trains nothing may not need

        loop.PROFILED = options.profile
        code = run_once(experiment, config, folder, options.distributed, argv)
        if loop.PROFILED:
            say(f"--profile={options.profile}: nothing was trained, so there is no trace")
        return code
    return run_once(experiment, config, folder, options.distributed, argv)


def refuse_unread(options: flags.FlagValues) -> None:
    """Refuse flags that only `--plan`, or a sweep that runs here, reads."""
    for name in ("plan_model", "plan_utilisation", "plan_price", "plan_programs"):
        if options[name].present:
            raise InputError(f"--{name} is read with --plan=TOPOLOGY only; leave it out")
    if options.sweep_apart and (not options.sweep or options.emit):
        raise InputError("--sweep_apart is of a --sweep that runs here; leave it out")
    if options.sweep_batched:
        if not (options.sweep or options.sweep_index) or options.emit:
            raise InputError("--sweep_batched is of a --sweep or a --sweep_index that runs here; leave it out")
        if options.sweep_apart or host.is_joined(options.distributed):
            raise InputError("--sweep_batched has points in one process: leave --sweep_apart, --distributed out")


def launch_sweep(
    experiment: configs.Experiment,
    config: ml_collections.ConfigDict,
    folder: str,
    options: flags.FlagValues,
    arguments: list[str],
    argv: list[str],
) -> int:
    """List, emit or run the points of a sweep, or the one of `--sweep_index`; every override is checked first."""
    every_point = experiment.points(config, arguments)
    changed = [sweeps.apply(config, point.overrides) for point in every_point]
    points = sweeps.chosen(every_point, options.sweep_index)
    if options.sweep_list:
        print("\n".join(sweeps.listing(points, folder)))
        return OK
    if options.emit:
        print(emit.render(options, points, experiment.label, folder, argv), end="")
        return OK
    is_joined = host.is_joined(options.distributed)
    if len(points) > 1 and options.sweep_index is not None and is_joined:
        raise InputError("--distributed: a process joins the others of one run only; give one --sweep_index")
    sweeps.check_index(every_point, folder, experiment.name)
    if options.sweep_batched:
        sweeps.check_batched(points, [changed[point.index] for point in points])
    defaults = experiment.defaults()
    finished: set[str] = set()  # ids
    for point in points:
        if is_finished(experiment, changed[point.index], point.workdir(folder)):
            finished.add(point.id)
        else:
            checks.check(experiment, changed[point.index])
        workdirs.check(point.workdir(folder), workdirs.plain(changed[point.index]), experiment.name, defaults)
    rest = sweeps.without_flags(argv)
    sweeps.write_index(every_point, folder, experiment.name)  # first: by it a point knows the folder that it may share
    if options.sweep_index is None:
        at_once = 1 if options.sweep_apart or is_joined else options.sweep_batched
        are_batched = bool(options.sweep_batched)
        code = sweeps.run_all(points, folder, rest, say, finished, at_once=at_once, are_batched=are_batched)
    elif len(points) > 1:
        parent = sweeps.open_report()
        theirs = [(point, changed[point.index]) for point in points]
        with once.shared():
            code = run_points(experiment, theirs, len(every_point), folder, rest, parent, options.sweep_batched or 1)
        if parent is not None:  # which writes the sweep's page
            return code
    else:
        code = run_once(experiment, changed[points[0].index], points[0].workdir(folder), options.distributed, argv)
    if host.process_index() == 0:  # a point that runs alone, as a job of an array, keeps the sweep's page up to date
        if hasattr(experiment.module, "compare"):  # the experiment's own tables over its points
            experiment.module.compare(folder)
        from experiments.report import comparison  # with matplotlib, which a start without sweep does not need

        say(f"comparison: {comparison.compare_sweep(folder)}")
    return code


def run_points(
    experiment: configs.Experiment,
    points: list[tuple[sweeps.Point, ml_collections.ConfigDict]],
    num: int,
    folder: str,
    argv: list[str],
    parent: int | None,
    at_once: int,
) -> int:
    """Several points of a sweep in this process, which share what it has compiled; one that fails stops no other.

    Args:
        points: with their configs; `num` points has the whole sweep.
        argv: the launcher's arguments; with a point's `--sweep_index` they repeat that point.
        parent: see `sweeps.report`.
        at_once: how many take their training steps in one program.
    """

    def run_one(point: sweeps.Point, config: ml_collections.ConfigDict) -> int:
        say(f"{sweeps.place(point, num)}: starting")
        own = [*argv, f"--sweep_index={point.index}"]
        workdir = point.workdir(folder)
        code, why = coded(functools.partial(run_once, experiment, config, workdir, is_distributed=False, argv=own))
        if why:
            print(why, file=sys.stderr, flush=True)
        if code not in (STOPPED, INTERRUPTED):
            say(f"{sweeps.place(point, num)}: {sweeps.outcome(code)}")
            sweeps.report(parent, point, code)
        gc.collect()  # the next point needs the memory of this one's cycles, which Python would free some time later
        return code

    codes = []
    for start in range(0, len(points), at_once):
        chosen = points[start : start + at_once]
        run_fns = [functools.partial(run_one, *point) for point in chosen]
        if len(chosen) == 1:
            codes.append(run_fns[0]())
        else:
            codes += run_together(run_fns, chosen, folder)
        if ended := {STOPPED, INTERRUPTED} & set(codes):
            return ended.pop()
    return sweeps.overall(codes)


def run_together(
    run_fns: list[Callable[[], int]], points: list[tuple[sweeps.Point, ml_collections.ConfigDict]], folder: str
) -> list[int]:
    """Points of which each runs in a thread, and all take their training steps in one program."""
    from alignment.train import batched  # with JAX, which an experiment that trains nothing may not need

    configs = {point.id: workdirs.flatten(workdirs.plain(config)) for point, config in points}
    group = batched.Group(configs, [point.workdir(folder) for point, _ in points])
    try:
        codes: list[int] = group.run(run_fns)
    except (host.Terminated, KeyboardInterrupt):
        host.abandon_threads()  # one may be computing, and Python cannot end it
        raise
    if not any(codes) and not group.has_trained:
        say(
            "--sweep_batched: these points took no step together, because they train nothing, or nothing in their own "
            "folders but in those of their phases; they ran one after the other. Leave it out"
        )
    return codes


def is_finished(experiment: configs.Experiment, config: ml_collections.ConfigDict, workdir: str) -> bool:
    """Whether nothing is left to do in a folder, so that what the run once read may be gone by now; reads only."""
    if not workdirs.is_done(workdir):
        return False
    before = workdirs.check(workdir, workdirs.plain(config), experiment.name, experiment.defaults())
    return not (before.goes_on or experiment.has_more(config, workdir))


def run_once(
    experiment: configs.Experiment,
    config: ml_collections.ConfigDict,
    workdir: str,
    is_distributed: bool,
    argv: list[str],
) -> int:
    """One run in one folder: guarded, seeded, resumed by simply calling `run` again, and marked DONE at the end."""
    resolved = workdirs.plain(config)
    host.start_distributed(is_distributed)
    goes_on = look_before(experiment, resolved, workdir).goes_on
    goes_on = goes_on or experiment.has_more(config, workdir)
    if workdirs.is_done(workdir) and not goes_on and not host.is_distributed():
        return show_finished(experiment, workdir)
    seed = int(config.get("seed", 0))
    random.seed(seed)
    np.random.seed(seed % 2**32)
    full_disk.say_once()
    # The folder belongs to the first process, which also decides for the others whether there is anything to do.
    if host.process_index() != 0:
        if host.agree(None) == "done":
            return show_finished(experiment, workdir)
        host.check_shared(workdir)
        return guarded_run(experiment, config, workdir, None)
    is_new = not os.path.exists(workdir)
    workdirs.make(workdir)
    with contextlib.closing(workdirs.lock(workdir)):
        before = look_before(experiment, resolved, workdir)  # again: another start may have ended
        goes_on = before.goes_on or experiment.has_more(config, workdir)
        is_done = workdirs.is_done(workdir) and not goes_on
        host.agree("done" if is_done else "run")
        if is_done:
            return show_finished(experiment, workdir)
        try:
            host.check_shared(workdir)
        except InputError:
            if is_new:
                workdirs.remove_unused(workdir)
            raise
        for line in before.said:
            say(line)
        if before.is_refused:
            workdirs.clear(workdir)
        if goes_on:
            workdirs.reopen(workdir)
        return guarded_run(experiment, config, workdir, workdirs.Record(workdir, experiment.name, resolved, argv))


def look_before(experiment: configs.Experiment, resolved: Mapping[str, Any], workdir: str) -> workdirs.Before:
    """What earlier starts left in the folder; refuses another run's."""
    if experiment.is_server:
        return workdirs.check_server(workdir, experiment.name)
    return workdirs.check(workdir, resolved, experiment.name, experiment.defaults())


def guarded_run(
    experiment: configs.Experiment, config: ml_collections.ConfigDict, workdir: str, record: workdirs.Record | None
) -> int:
    """Call the experiment's `run` and write what the launcher owns around it; `record` learns how it ended.

    Args:
        record: None in all processes of a multi-host run but the first, which alone writes.
    """
    started = time.monotonic()

    def end(outcome: str) -> None:
        with contextlib.suppress(OSError):  # on a full disk the reason for the end matters more than its record
            if record is not None:
                record.end(outcome, time.monotonic() - started)

    try:
        if record is not None:  # from here on whatever happens is in environment.json; a kill leaves no outcome there
            record.begin()
            host.at_forced_end(lambda: end("stopped"))
        summary = workdirs.numbers(experiment.module.run(config, workdir))
        if record is not None and experiment.is_server:
            end("done")
            show_summary(summary)
        elif record is not None:
            finish(experiment, workdir, summary, end)
        code, why = experiment.verdict(summary)
        if why:
            say(why)
        return code
    except (host.Terminated, KeyboardInterrupt) as e:
        host.stop_is_heard()
        end("stopped" if isinstance(e, host.Terminated) else "interrupted")
        raise
    except InputError:
        end("refused")
        raise
    except errors.Stopped as e:
        end("stopped")
        say(f"{str(e) or 'stopped'}; all work is saved in {workdir}, start the same command again to go on")
        return STOPPED
    except host.PeerEnded:
        end("stopped")
        raise
    except Exception as e:
        if full_disk.is_full_disk(e):
            end("full disk")
            raise InputError(full_disk.message(e, workdir, folders_of(config))) from e
        if why := full_disk.unusable(e):
            end("refused")
            raise InputError(why) from e
        if ended := host.peer_trouble(wait=PEER_WAIT):  # a collective fails when its peer is gone
            end("stopped")
            raise host.PeerEnded(ended) from e
        end("crashed")
        with contextlib.suppress(OSError):
            pathlib.Path(workdir, "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
        raise


def folders_of(config: ml_collections.ConfigDict) -> list[str]:
    """The folders that a config names, where a run may write besides its workdir."""
    values = workdirs.flatten(workdirs.plain(config)).values()
    return [value for value in values if isinstance(value, str) and os.path.isdir(value)]


def finish(
    experiment: configs.Experiment, workdir: str, summary: Mapping[str, float | None], end: Callable[[str], None]
) -> None:
    """Leave the summary, the page and, last of all, the mark of a finished run; `end` records the outcome."""
    files.write_json(os.path.join(workdir, "summary.json"), summary)
    experiment.describe(workdir, summary)
    end("done")
    path = page.build(workdir)
    pathlib.Path(workdir, "error.txt").unlink(missing_ok=True)
    files.write_text(os.path.join(workdir, "DONE"), workdirs.now() + "\n")
    show_summary(summary)
    say(f"report: {path}")


def show_finished(experiment: configs.Experiment, workdir: str) -> int:
    """Nothing is left to do: show the summary again and return the run's exit code."""
    summary = workdirs.read_json(os.path.join(workdir, "summary.json")) or {}
    say(f"{workdir} is finished already")
    show_summary(summary)
    code, why = experiment.verdict(summary)
    if why:
        say(why)
    return code


def show_summary(summary: Mapping[str, float | None]) -> None:
    width = max(map(len, summary), default=0)
    for name, value in sorted(summary.items(), key=lambda item: charts.rank(item[0])):
        print(f"{name:{width}}  {markup.number(value)}")


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    host.exit_process(main())
