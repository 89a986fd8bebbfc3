"""Every command and every piece of Python that the docs print is run, in a folder with the files that they name.

A launcher's command runs at `tiny`, and `--sweep` as its first point. One without flags and without a workdir is a
plain run, which tests/experiments/test_tiny.py makes of every experiment: here its name and setting are looked up.
`make slow` runs every command to its end. `make test` runs those whose files their page names later, and the first
of each experiment on whichever page comes first; the others stop after everything was checked, where the run would
begin.
"""

import contextlib
import importlib
import io
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from alignment.evaluation import prompting, rationales
from alignment.preference import losses
from experiments import run
from experiments.launch import workdir as workdirs
from experiments.medicine import stages
from experiments.report import charts
from experiments.report.__main__ import main as report
from experiments.safety import harness_tasks
from tests.docs.blocks import PAGES, ROOT, RUN, Block, read
from tests.experiments.test_tiny import NAMES

ELSEWHERE = {  # programs that the tests do not start
    "cd": "the tests stand in a folder of their own",
    "git": "it fetches from a network",
    "sbatch": "it needs a cluster; tests/experiments/launch reads the script",
    "kubectl": "it needs a cluster; tests/experiments/launch reads the JobSet",
    "source": "the tests run in the environment already",
    "open": "it opens a browser",
}
TRAINING = ("--config.steps=1", "--config.samples.num=1", "--config.sinks=()")
SHORTER = {  # than `tiny` by itself, where a command says nothing of these keys
    "dpo:tiny": (*TRAINING, "--config.pretrain.steps=0"),
    "betas.py:tiny": (*TRAINING, "--config.pretrain.steps=0"),  # which a page writes, with dpo's keys
    "sft:tiny": TRAINING,
    "pretrain:tiny": TRAINING,
    "native_alignment:tiny": ("--config.arms=raw,aligned", "--config.post=False"),
    "genarm:tiny": ("--config.baselines=soups", "--config.points=2"),
    "serve:tiny": ("--config.port=0",),
    "medguard:tiny": ("--config.max_new_tokens=8",),  # for a checkpoint of short rows
    "harness:tiny": ("--config.engine.max_len=512",),  # for tasks that write 256 tokens
    "aloe:tiny": (  # a reader's own files
        *("--config.synthesis.teacher=", "--config.bias.vignettes=", "--config.engine.max_len=1024"),
        *(f"--config.world.{name}=None" for name in ("readings", "conversations", "times", "peak_lr")),
    ),
    "concept_bias:tiny": ("--config.data.negative=()",),  # for a reader's own concepts
    "merge:tiny": ("--config.toy.steps=None", "--config.toy.expert_steps=None"),  # a reader's own recipe
}
LAUNCHER = ["python", "-m", "experiments.run"]
MOST_EXCUSED = 6  # blocks that are not run
BEGAN: set[str] = set()  # experiments of which a command has run, on any page


def call(main, argv: list[str]) -> str:
    """What a command line prints; it must end with exit code 0."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(argv)
    assert code == 0, f"exit code {code}: {err.getvalue()}"
    return out.getvalue()


def at_tiny(words: list[str]) -> list[str]:
    """The command's arguments at the setting `tiny`, a sweep as its first point."""
    place = words.index("--config") + 1
    target = words[place].partition(":")[0] + ":tiny"
    rest = words[:place] + [target] + words[place + 1 :]
    rest += [flag for flag in SHORTER.get(target, ()) if not any(flag.split("=")[0] in word for word in words)]
    if "--sweep" in rest and not any(word.startswith("--emit") for word in rest):
        rest[rest.index("--sweep")] = "--sweep_index=0"
    return rest


def answers_as_told(work) -> list[prompting.Reply]:
    """A teacher that repeats the right answer, as no model of three steps does."""
    told = re.compile(re.escape(rationales.TOLD).replace(re.escape("{answer}"), "(.+?)"))
    return [prompting.Reply(told.search(request.messages[-1]["content"])[1]) for request in work]


def launcher(words: list[str], flags: tuple[str, ...], runs: bool) -> None:
    is_plain = len(words) == 2
    if is_plain or "--help" in words:
        call(run.main, [*words, "--help"])
        return
    path = None
    if ">" in words:
        words, path = words[: words.index(">")], words[-1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "responder", lambda *_: answers_as_told)
        if not runs:
            patch.setattr(run, "run_once", lambda *_: 0)
        printed = call(run.main, [*at_tiny(words), *flags])
    if path:
        pathlib.Path(path).write_text(printed)


def is_needed(words: list[str], began: set[str], rest: str) -> bool:
    """Whether a launcher's command is its experiment's first, a sweep, or writes what the page names later.

    Args:
        began: experiments of which one has run already; gains this one's.
    """
    target = words[words.index("--config") + 1].partition(":")[0] if "--config" in words else ""
    target = pathlib.PurePath(target).stem  # a name, or a file
    folders = [words[i + 1] for i, word in enumerate(words) if word == "--workdir"]
    folders += [word.partition("=")[2] for word in words if word.startswith(("--config.outputs=", "--workdir="))]
    if target not in began or "--sweep" in words or any(folder in rest for folder in folders):
        began.add(target)
        return True
    return False


def installer(words: list[str]) -> None:
    """The extras that pip is asked for exist."""
    extras = {extra for word in words for extra in re.findall(r"\[([\w,]+)\]", word) for extra in extra.split(",")}
    known = re.findall(r'^    "(\w+)": \[', (ROOT / "setup.py").read_text(encoding="utf-8"), re.MULTILINE)
    assert extras <= {*known, "all"}, extras
    assert not any(word.endswith(".txt") and not (ROOT / word).is_file() for word in words)


def script(words: list[str]) -> None:
    """A benchmark is there and knows its flags; what it measures takes minutes."""
    text = "".join((ROOT / name).read_text(encoding="utf-8") for name in (words[0], "benchmarks/machine.py"))
    assert all(f'"{word.partition("=")[0]}"' in text for word in words[1:] if word.startswith("--"))


def command(words: list[str], flags: tuple[str, ...], runs: bool = True) -> None:
    match words:
        case ["python", "-m", "experiments.run", *rest]:
            launcher(rest, flags, runs)
        case ["python", "-m", "experiments.report", *rest]:
            call(report, rest)
        case ["python", "-m", "experiments.safety.harness_tasks", *rest]:
            call(harness_tasks.main, rest)
        case ["python", "-m", "pytest", *rest]:
            done = subprocess.run(
                [sys.executable, "-m", "pytest", *rest, "-p", "no:cacheprovider"], capture_output=True
            )
            assert done.returncode == 0, done.stdout.decode()
        case ["python", name, *rest] if name.startswith("benchmarks/"):
            script([name, *rest])
        case ["make", *rest]:
            subprocess.run(["make", "--dry-run", "--directory", ROOT, *rest], check=True, capture_output=True)
        case ["pip", "install", *rest]:
            installer(rest)
        case [name, *_] if name in ELSEWHERE:
            pass
        case _:
            raise AssertionError("no test knows how to run this command; see tests/docs/test_commands.py")


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_what_a_page_prints_runs(page, world, monkeypatch):
    work_through(page, world, monkeypatch, everything=True)


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_what_a_page_prints_is_accepted_and_an_example_of_each_experiment_runs(page, world, monkeypatch):
    work_through(page, world, monkeypatch, everything=False)


def work_through(page, world, monkeypatch, *, everything):
    """Do what a page prints, from its top to its bottom."""
    monkeypatch.chdir(world)
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
    monkeypatch.setattr(charts, "svg", lambda *_, **__: "<svg></svg>")  # drawing takes a second a run
    names: dict[str, object] = {"__name__": page.stem}
    blocks = read(page)
    for number, block in enumerate(blocks):
        if block.reason or block.language not in RUN:
            continue
        if block.language == "python":
            exec(compile(block.text, block.where, "exec"), names)
            continue
        commands = block.commands()
        for at, words in enumerate(commands, 1):
            rest = "\n".join([*map(shlex.join, commands[at:]), *(later.text for later in blocks[number + 1 :])])
            runs = everything or words[:3] != LAUNCHER or is_needed(words, BEGAN, rest)
            try:
                command(words, block.flags, runs)
            except Exception as error:
                raise AssertionError(f"{block.where}: {shlex.join(words)}\n{error}") from error


def test_every_loss_stands_in_the_table_of_losses():
    text = (ROOT / "docs/preferences.md").read_text(encoding="utf-8")
    table = [row.split(" | ")[0] for row in text.splitlines() if row.startswith("| `")]
    assert set(losses.LOSSES) <= {name for cell in table for name in re.findall(r"`(\w+)`", cell)}
    assert f"{len(losses.LOSSES)} losses" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_messages_of_the_table_are_those_of_the_code():
    paths = [path for top in ("alignment", "data", "experiments") for path in (ROOT / top).rglob("*.py")]
    code = "".join(path.read_text(encoding="utf-8") for path in paths)
    code = re.sub(r'"\s*\n\s*f?"', "", code)  # a message over several lines
    text = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8").partition("## Messages")[2]
    messages = re.findall(r"^\| `(.+?)` \|", text, re.MULTILINE)
    parts = [part.strip(" ,;=") for message in messages for part in message.split("...")]
    assert len(messages) > 15 and [part for part in parts if part not in code] == []


def test_few_blocks_are_excused():
    excused = [block for page in PAGES for block in read(page) if block.reason]
    assert len(excused) <= MOST_EXCUSED, [f"{block.where}: {block.reason}" for block in excused]


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_files_of_the_repository_that_a_page_names_are_there(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    names = re.findall(r"`((?:alignment|benchmarks|data|docs|experiments|tests)/[\w./-]+)`", text)
    assert [name for name in names if "NAME" not in name and not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_keys_that_a_page_names_are_those_of_an_experiment(page):
    keys = set(re.findall(r"--config\.([a-z_]\w*(?:\.\w+)*)", page.read_text(encoding="utf-8")))
    configs = [importlib.import_module(f"experiments.{name}").get_config() for name in NAMES]
    known = [f"{key}." for config in configs for key in workdirs.flatten(workdirs.plain(config))]
    unknown = {key for key in keys if not any(name.startswith(f"{key}.") for name in known)}
    assert unknown <= {"KEY", "bias"}  # a stand-in, and a key of the experiment that a page writes


def test_links_of_the_pages_outside_the_site_lead_somewhere():
    """Links among docs/ are checked by `make docs`."""
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        for link in re.findall(r"\]\(([^):]+)\)", page.read_text(encoding="utf-8")):
            name, _, anchor = link.partition("#")
            assert (ROOT / name).exists(), link
            headings = re.findall(r"^#+ (.+)$", (ROOT / name).read_text("utf-8"), re.MULTILINE) if anchor else [""]
            assert anchor in [re.sub(r"[^\w-]", "", heading.lower().replace(" ", "-")) for heading in headings], link


def test_a_block_without_a_language_or_with_an_odd_comment_is_refused(tmp_path):
    for text in ("```\nmake test\n```\n", "<!-- test: not run -->\n```sh\nmake test\n```\n", "```sh\nmake test\n"):
        page = ROOT / "docs" / "index.md"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pathlib.Path, "read_text", lambda *_, text=text, **__: text)
            with pytest.raises(ValueError, match=r"docs/index\.md:1"):
                read(page)


def test_a_command_that_nobody_knows_is_refused():
    with pytest.raises(AssertionError, match="no test knows"):
        command(["curl", "example.org"], ())


def test_a_backslash_joins_lines_and_a_hash_begins_a_comment():
    block = Block("page:1", "sh", "make \\\n  test  # all\n\n# nothing\nmake lint\n")
    assert block.commands() == [["make", "test"], ["make", "lint"]]
