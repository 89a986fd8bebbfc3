"""Job descriptions for schedulers, printed and never submitted: one job, or a sweep as an array or a JobSet a point.

The point's number is passed as `--sweep_index`; JOB_COMPLETION_INDEX is left to JAX, which reads it as the number of a
process within one multi-host run.
"""

import dataclasses
import os
import re
import shlex
from typing import Any

from absl import flags

from alignment.errors import InputError
from experiments.launch import host, sweeps

OWN = ("emit", "hosts", "sbatch", "image", "queue", "limits", "node_selector", "volume", "bucket", "grace", "workdir")
OWN += ("sweep_index",)
SWITCHES = ("sweep", "nosweep", "sweep_apart", "nosweep_apart", "distributed", "nodistributed")  # flags without a value
STOPS = 100  # times that such a run is started again: a service may be down for ever
RESTARTS = 20  # of a JobSet, after crashes
PORT = 8476  # of the coordinator, inside the job's own network


def define_flags(values: flags.FlagValues) -> None:
    """Add the flags that only `--emit` reads."""
    own = {"flag_values": values}
    flags.DEFINE_integer("hosts", 1, "", lower_bound=1, **own)
    flags.DEFINE_multi_string("sbatch", [], "", **own)
    flags.DEFINE_string("image", "", "", **own)
    flags.DEFINE_string("queue", "", "", **own)
    flags.DEFINE_multi_string("limits", [], "", **own)
    flags.DEFINE_multi_string("node_selector", [], "", **own)
    flags.DEFINE_string("volume", "", "", **own)
    flags.DEFINE_string("bucket", "", "", **own)
    flags.DEFINE_integer("grace", 300, "", lower_bound=1, **own)


def render(options: flags.FlagValues, points: list[sweeps.Point], label: str, folder: str, argv: list[str]) -> str:
    """The text for `--emit`.

    Args:
        options: the launcher's flags.
        points: of a sweep; none for a single run.
        label: names the job, such as `dpo-laptop`.
        folder: the workdir.
        argv: the launcher's own arguments.
    """
    arguments = launcher_arguments(argv)
    if options.emit == "slurm":
        return slurm(arguments, points, label, os.path.abspath(folder), options.hosts, options.sbatch)
    if not options.image:
        raise InputError("--emit=jobset needs --image=IMAGE, a container image with this repository installed")
    limits, selector = pairs("limits", options.limits), pairs("node_selector", options.node_selector)
    disk = storage(options.volume, options.bucket, folder)
    options_of_all = (folder, options.hosts, options.image, options.queue, limits, selector, disk, options.grace)
    documents = [jobset(arguments, point, label, *options_of_all) for point in points or [None]]
    import yaml  # comes with flax

    return yaml.safe_dump_all(documents, sort_keys=False, width=1_000)


@dataclasses.dataclass(frozen=True)
class Disk:
    """A pod's volume, where it is mounted, and the annotations that its driver wants."""

    volume: dict[str, Any]
    mount: dict[str, Any]
    annotations: dict[str, str]


def storage(claim: str, bucket: str, folder: str) -> Disk:
    """The disk that all pods of a run share, from `--volume=CLAIM:/PATH` or `--bucket=NAME[:/PATH]`.

    Raises:
        InputError: neither or both are given, or the workdir does not lie there: a pod's own disk goes with the pod.
    """
    if bool(claim) == bool(bucket):
        raise InputError(
            "--emit=jobset needs a disk that outlives its pods: --volume=CLAIM:/PATH, a PersistentVolumeClaim, or "
            "--bucket=NAME[:/PATH], a bucket of Google Cloud Storage; one of the two"
        )
    name, _, path = (claim or bucket).partition(":")
    path = path or ("/bucket" if bucket else "")
    if not path.startswith("/"):
        raise InputError(f"--volume={claim} must read CLAIM:/PATH, the claim and where it is mounted")
    if not f"{os.path.normpath(folder)}/".startswith(f"{path.rstrip('/')}/"):
        raise InputError(
            f"--workdir={folder} does not lie under {path}, where the volume is mounted; give one that does"
        )
    mount = {"name": "work", "mountPath": path}
    if claim:
        return Disk({"name": "work", "persistentVolumeClaim": {"claimName": name}}, mount, {})
    attributes = {"bucketName": name, "mountOptions": "implicit-dirs"}
    driver = {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": attributes}
    return Disk({"name": "work", "csi": driver}, mount, {"gke-gcsfuse/volumes": "true"})


def launcher_arguments(argv: list[str]) -> list[str]:
    """The arguments a job needs: the experiment and its overrides, without the flags this module answers."""
    rest, i = [], 0
    while i < len(argv):
        key, equals, _ = argv[i].lstrip("-").partition("=")
        has_value = not equals and key not in SWITCHES and i + 1 < len(argv) and not argv[i + 1].startswith("-")
        if key not in (*OWN, *SWITCHES):
            rest += argv[i : i + 1 + has_value]
        i += 1 + has_value
    return rest


def slurm(
    arguments: list[str], points: list[sweeps.Point], label: str, folder: str, hosts: int, options: list[str]
) -> str:
    """An sbatch script: an array over the points (none: one job), requeued when stopped after saving (exit code 75).

    Slurm counts how often it started a job again, preemptions included; past STOPS of them a stop is final.

    Args:
        folder: absolute, on a file system that all nodes share.
        options: further `name=value` (or bare `name`) lines for #SBATCH.
    """
    log = f"{label}-{'%A_%a' if points else '%j'}.out"  # where sbatch is called: Slurm opens it before it runs a line
    lines = [f"job-name={label}", f"nodes={hosts}", "ntasks-per-node=1", f"output={log}"]
    lines += ["open-mode=append", "requeue", "signal=TERM@120"]
    if points:
        lines.insert(1, "array=" + ranges([p.index for p in points]))
    lines += [option.lstrip("-") for option in options]
    if wrong := next((option for option in options if re.search(r'[\n"\\]', option)), None):
        raise InputError(
            f"--sbatch={wrong!r} holds a line break, a double quote or a backslash; give one option at a time, its "
            "value as it is: blanks in it are quoted for you"
        )
    command = [*host.python_command(), *arguments, "--workdir", folder]
    text = shlex.join(command) + (" --distributed" if hosts > 1 else "")
    text += ' --sweep_index="$SLURM_ARRAY_TASK_ID"' if points else ""
    job = '"${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"' if points else '"$SLURM_JOB_ID"'
    header = "\n".join(f"#SBATCH --{sbatch_value(line)}" for line in lines)
    names = "".join(f"#   {p.index}: {p.id}\n" for p in points)
    return (
        f"#!/bin/bash\n{header}\n"
        + (f"# points:\n{names}" if points else "")
        + f"set -uo pipefail\ncd {shlex.quote(os.getcwd())} || exit 1\nmkdir -p {shlex.quote(folder)}\n"
        f"srun {text}\ncode=$?\n"
        f'if [ "$code" -eq {host.STOPPED} ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {STOPS} ]; then'
        "  # stopped after saving: go on later\n"
        f'  scontrol requeue {job}\nfi\nexit "$code"\n'
    )


def sbatch_value(line: str) -> str:
    """Slurm splits its lines on blanks and reads quotes and comments; double quotes keep a value as it is."""
    name, equals, value = line.partition("=")
    return f'{name}="{value}"' if equals and re.search(r"[\s'#]", value) else line


def ranges(numbers: list[int]) -> str:
    """`0-3,7` from [0, 1, 2, 3, 7], in rising order."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def jobset(
    arguments: list[str],
    point: sweeps.Point | None,
    label: str,
    folder: str,
    hosts: int,
    image: str,
    queue: str,
    limits: dict[str, str],
    selector: dict[str, str],
    disk: Disk,
    grace: int,
) -> dict:
    """One JobSet: an indexed Job of `hosts` pods.

    A preemption brings a new pod and counts as nothing. A stop after saving (75) brings one STOPS times, a service that
    stays down included; after that, and at a crash, the pod's index fails, with it the Job, and the JobSet restarts
    RESTARTS times. 2 (something to put right) and 3 (done, too many bad records) are final.

    Args:
        disk: where the workdir lies.
        grace: seconds between SIGTERM and SIGKILL, in which a run saves.
    """
    name = dns_name(f"{label}-{point.index}" if point else label)
    command = ["python", "-m", "experiments.run", *arguments, "--workdir", folder]
    command += [f"--sweep_index={point.index}"] if point else []
    command += ["--distributed"] if hosts > 1 else []
    container = {"name": "run", "image": image, "command": command, "volumeMounts": [disk.mount]}
    if hosts > 1:
        container["ports"] = [{"containerPort": PORT}]
        container["env"] = coordinates(name, hosts)
    if limits:
        container["resources"] = {"limits": limits}
    pod = {"restartPolicy": "Never", "terminationGracePeriodSeconds": grace, "containers": [container]}
    pod["volumes"] = [disk.volume]
    if selector:
        pod["nodeSelector"] = selector
    job = {
        "parallelism": hosts,
        "completions": hosts,
        "completionMode": "Indexed",
        "backoffLimitPerIndex": STOPS,
        "maxFailedIndexes": 0,
        "podFailurePolicy": {  # the first rule that fits
            "rules": [
                {"action": "FailJob", "onExitCodes": exits("In", 2, 3)},
                {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                {"action": "Count", "onExitCodes": exits("In", host.STOPPED)},
                {"action": "FailIndex", "onExitCodes": exits("NotIn", 2, 3, host.STOPPED)},
            ]
        },
        "template": ({"metadata": {"annotations": disk.annotations}} if disk.annotations else {}) | {"spec": pod},
    }
    rule = {"name": "final", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    metadata = {"name": name} | ({"annotations": {"plumbline/point": point.id}} if point else {})
    if queue:
        metadata["labels"] = {"kueue.x-k8s.io/queue-name": queue}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "failurePolicy": {"maxRestarts": RESTARTS, "rules": [rule]},
            "replicatedJobs": [{"name": "host", "replicas": 1, "template": {"spec": job}}],
        },
    }


def exits(operator: str, *codes: int) -> dict[str, Any]:
    """Exit codes of the one container, for a rule about failed pods."""
    return {"containerName": "run", "operator": operator, "values": list(codes)}


def coordinates(name: str, hosts: int) -> list[dict]:
    """The environment that jax.distributed reads: the first pod's name in the JobSet's network, each pod's number."""
    field = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    return [
        {"name": "JAX_COORDINATOR_ADDRESS", "value": f"{name}-host-0-0.{name}:{PORT}"},
        {"name": "JAX_NUM_PROCESSES", "value": str(hosts)},
        {"name": "JAX_PROCESS_ID", "valueFrom": {"fieldRef": {"fieldPath": field}}},
    ]


def dns_name(text: str) -> str:
    """A name Kubernetes takes, short enough for the pods' own suffixes."""
    safe = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    head, _, tail = safe.rpartition("-")
    return safe if len(safe) <= 45 else f"{head[: 44 - len(tail)].rstrip('-')}-{tail}"


def pairs(flag: str, values: list[str]) -> dict[str, str]:
    """`key=value` strings as a dict."""
    wrong = [v for v in values if "=" not in v]
    if wrong:
        raise InputError(f"--{flag}={wrong[0]} must read KEY=VALUE")
    return dict(v.split("=", 1) for v in values)
