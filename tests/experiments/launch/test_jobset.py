"""The JobSet that `--emit=jobset` prints, against what the CRD of jobset.x-k8s.io/v1alpha2 and batch/v1 ask for."""

import jsonschema
import pytest
import yaml

from experiments import run
from tests.experiments.launch.test_config import STUB


def closed(required, **properties):
    """An object that knows these properties only, as a server with strict field validation reads it."""
    shape = {"type": "object", "properties": properties, "required": required.split(), "additionalProperties": False}
    return shape


TEXT, COUNT, TEXTS = (
    {"type": "string"},
    {"type": "integer", "minimum": 0},
    {"type": "array", "items": {"type": "string"}},
)
LABEL = {"type": "string", "maxLength": 63, "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"}
PAIRS = {"type": "object", "additionalProperties": TEXT}


def listed(items, **rest):
    return {"type": "array", "items": items, **rest}


EXIT_CODES = closed(
    "operator values",
    containerName=TEXT,
    operator={"enum": ["In", "NotIn"]},
    values=listed({"type": "integer", "not": {"const": 0}}, minItems=1, maxItems=255, uniqueItems=True),
)
POD_RULE = closed(
    "action",
    action={"enum": ["FailJob", "FailIndex", "Ignore", "Count"]},
    onExitCodes=EXIT_CODES,
    onPodConditions=listed(closed("type status", type=TEXT, status={"enum": ["True", "False", "Unknown"]}), minItems=1),
) | {"oneOf": [{"required": ["onExitCodes"]}, {"required": ["onPodConditions"]}]}
VOLUME = closed(
    "name",
    name=LABEL,
    persistentVolumeClaim=closed("claimName", claimName=TEXT, readOnly={"type": "boolean"}),
    csi=closed("driver", driver=TEXT, volumeAttributes=PAIRS, readOnly={"type": "boolean"}),
) | {"oneOf": [{"required": ["persistentVolumeClaim"]}, {"required": ["csi"]}]}
FIELD = closed("fieldRef", fieldRef=closed("fieldPath", fieldPath=TEXT))
CONTAINER = closed(
    "name image",
    name=LABEL,
    image=TEXT,
    command=TEXTS,
    env=listed(closed("name", name=TEXT, value=TEXT, valueFrom=FIELD)),
    ports=listed(closed("containerPort", containerPort={"type": "integer", "minimum": 1, "maximum": 65535})),
    resources=closed("", limits=PAIRS, requests=PAIRS),
    volumeMounts=listed(closed("name mountPath", name=LABEL, mountPath={"type": "string", "pattern": "^/[^:]*$"})),
)
POD = closed(
    "containers restartPolicy",
    containers=listed(CONTAINER, minItems=1),
    restartPolicy={"const": "Never"},  # what podFailurePolicy asks for
    terminationGracePeriodSeconds=COUNT,
    nodeSelector=PAIRS,
    volumes=listed(VOLUME),
)
JOB = closed(
    "template",
    parallelism=COUNT,
    completions=COUNT,
    completionMode={"enum": ["Indexed", "NonIndexed"]},
    backoffLimit=COUNT,
    backoffLimitPerIndex=COUNT,
    maxFailedIndexes=COUNT,
    podFailurePolicy=closed("rules", rules=listed(POD_RULE, maxItems=20)),
    template=closed("spec", metadata=closed("", annotations=PAIRS, labels=PAIRS), spec=POD),
)
REASONS = ["BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes", "MaxFailedIndexesExceeded", "PodFailurePolicy"]
RULE = closed(
    "name action",
    name={"type": "string", "minLength": 1, "maxLength": 128, "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
    action={"enum": ["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"]},
    onJobFailureReasons=listed({"enum": REASONS}),
    targetReplicatedJobs=TEXTS,
)
REPLICATED = closed("name template", name=LABEL, replicas=COUNT, template=closed("spec", spec=JOB))
JOBSET = closed(
    "apiVersion kind metadata spec",
    apiVersion={"const": "jobset.x-k8s.io/v1alpha2"},
    kind={"const": "JobSet"},
    metadata=closed("name", name=LABEL, labels=PAIRS, annotations=PAIRS),
    spec=closed(
        "replicatedJobs",
        failurePolicy=closed("", maxRestarts=COUNT, rules=listed(RULE, maxItems=20)),
        replicatedJobs=listed(REPLICATED, minItems=1),
    ),
)
NEEDED = ("--emit=jobset", "--image=i:1")


def printed(capsys, *flags):
    assert run.main(["--config", str(STUB), *NEEDED, *flags]) == 0
    return list(yaml.safe_load_all(capsys.readouterr().out))


def pod_of(document):
    return document["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]


@pytest.mark.parametrize(
    "flags",
    [
        ["--volume=claim:/disk", "--workdir=/disk/runs"],
        ["--bucket=models", "--workdir=/bucket/runs", "--hosts=4", "--sweep", "--limits=google.com/tpu=4"],
        ["--volume=claim:/disk", "--workdir=/disk", "--queue=q", "--node_selector=a/b=c", "--hosts=2", "--grace=60"],
    ],
)
def test_every_jobset_is_valid_against_the_schema(flags, capsys):
    for document in printed(capsys, *flags):
        jsonschema.validate(document, JOBSET)


def test_the_schema_refuses_what_the_server_would(capsys):
    (document,) = printed(capsys, "--volume=claim:/disk", "--workdir=/disk/runs")
    del document["spec"]["failurePolicy"]["rules"][0]["name"]
    with pytest.raises(jsonschema.ValidationError, match="'name' is a required property"):
        jsonschema.validate(document, JOBSET)


def action(rules, code, *, is_preempted=False):
    """What Kubernetes does with a pod that failed so: the first rule that fits, else it counts."""
    for rule in rules:
        codes = rule.get("onExitCodes")
        if codes and (code in codes["values"]) == (codes["operator"] == "In"):
            return rule["action"]
        if "onPodConditions" in rule and is_preempted:
            return rule["action"]
    return "Count"


def test_bad_input_is_final_a_preemption_counts_as_nothing_and_stops_and_crashes_are_bounded(capsys):
    (document,) = printed(capsys, "--volume=claim:/disk", "--workdir=/disk/runs")
    job = document["spec"]["replicatedJobs"][0]["template"]["spec"]
    rules = job["podFailurePolicy"]["rules"]
    assert {action(rules, code) for code in (2, 3)} == {"FailJob"}
    assert {action(rules, code, is_preempted=True) for code in (75, 143, 137)} == {"Ignore"}
    assert action(rules, 75) == "Count" and job["backoffLimitPerIndex"] == 100
    assert {action(rules, code) for code in (1, 134, 137, 139)} == {"FailIndex"} and job["maxFailedIndexes"] == 0
    policy = document["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 20  # what MaxFailedIndexesExceeded leads to, as no rule names it
    assert [rule["onJobFailureReasons"] for rule in policy["rules"]] == [["PodFailurePolicy"]]
    assert pod_of(document)["spec"]["terminationGracePeriodSeconds"] == 300


@pytest.mark.parametrize(
    ("flags", "volume"),
    [
        (["--volume=claim:/disk", "--workdir=/disk/runs"], {"persistentVolumeClaim": {"claimName": "claim"}}),
        (["--bucket=models:/gcs", "--workdir=/gcs/runs"], None),
    ],
)
def test_the_workdir_lies_on_a_volume_or_a_bucket(flags, volume, capsys):
    (document,) = printed(capsys, *flags)
    pod = pod_of(document)
    (disk,), (mount,) = pod["spec"]["volumes"], pod["spec"]["containers"][0]["volumeMounts"]
    assert disk["name"] == mount["name"] and flags[1].removeprefix("--workdir=").startswith(mount["mountPath"])
    if volume:
        assert {"name": "work"} | volume == disk
    else:
        assert disk["csi"]["volumeAttributes"]["bucketName"] == "models"
        assert pod["metadata"]["annotations"] == {"gke-gcsfuse/volumes": "true"}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "needs a disk that outlives its pods"),
        (["--volume=a:/a", "--bucket=b"], "one of the two"),
        (["--volume=a"], "must read CLAIM:/PATH"),
        (["--volume=a:/disk", "--workdir=/other/x"], "does not lie under /disk"),
        (["--volume=a:/disk", "--workdir=/disk/../other"], "does not lie under /disk"),
        (["--bucket=b"], "does not lie under /bucket"),
    ],
)
def test_a_jobset_without_a_place_that_stays_is_refused(flags, said, capsys):
    assert run.main(["--config", str(STUB), *NEEDED, *flags]) == 2
    assert said in capsys.readouterr().err
