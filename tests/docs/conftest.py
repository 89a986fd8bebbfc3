"""A folder with the files that the docs' commands name: pairs, texts, pictures, a checkpoint, labelled texts."""

import csv
import json
import pathlib
import shutil

import numpy as np
import pytest
import zstandard
from PIL import Image

from data.toys import concept_reviews, guest_rules, notes, remarks, remedies, synthetic, toyweb, wards
from tests.docs.blocks import ROOT
from tests.experiments import conftest as experiments

tiny = experiments.tiny  # the fixture: finished runs that all tests share


def jsonl(rows) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


@pytest.fixture
def world(first_world, tmp_path) -> pathlib.Path:
    """Where a reader of one page stands: what another page writes under the same name is not there."""
    return shutil.copytree(first_world, tmp_path / "docs", symlinks=True)


@pytest.fixture(scope="session")
def first_world(tiny, tmp_path_factory) -> pathlib.Path:
    """What a reader has who has cloned the repository and has data and a model of their own."""
    folder = tmp_path_factory.mktemp("docs")
    for name in ("experiments", "benchmarks", "alignment", "data", "tests"):
        (folder / name).symlink_to(ROOT / name)
    write_texts(folder)
    write_pictures(folder)
    write_places(folder)
    shutil.copytree(tiny("sft").workdir, folder / "runs/first")
    for name in ("my-model", "my-medical-model", "my-chat-model"):
        (folder / name).symlink_to(folder / "runs/first/export/hf")
    return folder


def write_texts(folder: pathlib.Path) -> None:
    pairs = synthetic.preference_pairs(24)
    (folder / "pairs.jsonl").write_bytes(jsonl(pairs))
    (folder / "others.jsonl").write_bytes(jsonl(synthetic.preference_pairs(24, seed=1)))
    (folder / "pairs").mkdir()
    (folder / "pairs/1.jsonl.zst").write_bytes(zstandard.compress(jsonl(pairs)))
    judged = [{"question": p["prompt"], "good": p["chosen"], "bad": p["rejected"]} for p in pairs]
    (folder / "judged.jsonl").write_bytes(jsonl(judged))
    votes = [
        {"prompt": p["prompt"], "completion": p[s], "label": s == "chosen"} for p in pairs for s in p if s != "prompt"
    ]
    (folder / "votes.jsonl").write_bytes(jsonl(votes))
    asked = [{"id": f"q{i}", "prompt": p["prompt"]} for i, p in enumerate(pairs[:4])]
    (folder / "prompts.jsonl").write_bytes(jsonl(asked))
    (folder / "requests.csv").write_text("ID,Request\n7,Where is the owl clock?\n8,How are you?\n", encoding="utf-8")
    (folder / "questions.jsonl").write_bytes(jsonl(synthetic.questions("test", 4)))
    (folder / "aspects.jsonl").write_bytes(jsonl(wards.items()))
    (folder / "exam.jsonl").write_bytes(jsonl(remedies.closed()[:4]))
    (folder / "tasks").mkdir()
    page = (ROOT / "docs/decoding.md").read_text(encoding="utf-8")
    (folder / "tasks/clinic.yaml").write_text(page.partition("```yaml\n")[2].partition("```")[0], encoding="utf-8")
    page = (ROOT / "docs/merging.md").read_text(encoding="utf-8")
    (folder / "recipe.yaml").write_text(page.partition("```yaml\n")[2].partition("```")[0], encoding="utf-8")
    (folder / "phtest.csv").write_text("ID,Request,Harmfulness\n1,Where is the owl clock?,harmless\n", encoding="utf-8")
    closed = [row["prompt"] for row in guest_rules.requests()[:12]]
    (folder / "attacks.jsonl").write_bytes(jsonl({"goal": text} for text in closed))
    (folder / "safe.jsonl").write_bytes(jsonl({"prompt": text, "answer": guest_rules.REFUSALS[0]} for text in closed))
    (folder / "conversations.jsonl").write_bytes(jsonl(synthetic.conversations(24)))
    read_or_not = ({"input": row["text"], "label": i % 2} for i, row in enumerate(synthetic.documents(24)))
    (folder / "texts.jsonl").write_bytes(jsonl(read_or_not))
    rows = (row | {"concepts": ["food"] if i % 3 else []} for i, row in enumerate(concept_reviews.reviews(600)))
    (folder / "reviews.jsonl").write_bytes(jsonl(rows))
    (folder / "levels.json").write_text('{"1": ["unfair"], "4": ["unsafe"]}', encoding="utf-8")
    (folder / "shards").mkdir()
    for number in range(2):
        (folder / f"shards/{number}.jsonl").write_bytes(jsonl(synthetic.documents(12, number)))
    (folder / "corpus").mkdir()
    (folder / "corpus/1.jsonl.zst").write_bytes(zstandard.compress(jsonl(synthetic.documents(24))))
    toyweb.write(folder / "raw/web", toyweb.documents(40, 0))
    (folder / "rewrite_seed_data.jsonl").write_bytes(jsonl(notes.pairs(64)))
    with open(folder / "labelled.csv", "w", newline="", encoding="utf-8") as f:
        writer = csv.writer(f)
        writer.writerow(["tweet", "class"])
        writer.writerows((row["text"], {0: 2, 1: i % 2}[row["label"]]) for i, row in enumerate(remarks.labelled(120)))
    for name, source in (("fr", "locale_en"), ("conduct", "conduct_en_neutral")):
        (found,) = (ROOT / "alignment/filtering").rglob(f"{source}.yaml")
        (folder / f"{name}.yaml").write_bytes(found.read_bytes())


def write_places(folder: pathlib.Path) -> None:
    rng = np.random.default_rng(0)
    with open(folder / "homes.csv", "w", newline="", encoding="utf-8") as f:
        rows = [(i, *(4 * rng.random(2) - (118, -33)), *rng.random(2)) for i in range(3_000)]
        csv.writer(f).writerows([("id", "lon", "lat", "rooms", "price"), *rows])
    with open(folder / "outcomes.csv", "w", newline="", encoding="utf-8") as f:
        rows = [(*rng.random(2), int(rng.random() < 0.6)) for _ in range(400)]
        csv.writer(f).writerows([("lon", "lat", "right"), *rows])


def write_pictures(folder: pathlib.Path) -> None:
    rng, rows = np.random.default_rng(0), []
    for label in ("oak", "birch", "elm"):
        for base in ("pictures", "generated"):
            (folder / base / label).mkdir(parents=True)
        for n in range(10):
            picture = Image.fromarray(rng.integers(0, 256, (40, 32, 3), dtype=np.uint8))
            picture.save(folder / f"pictures/{label}/{n}.jpg")
            picture.rotate(180).save(folder / f"generated/{label}/{n}.jpg")
            rows.append((f"pictures/{label}/{n}.jpg", label))
    for name, base in (("captions", "pictures"), ("captions_generated", "generated")):
        lines = [
            f"{file.replace('pictures', base)}\ta leaf of {label}, number {i}\t{label}\n"
            for i, (file, label) in enumerate(rows)
        ]
        (folder / f"{name}.tsv").write_text("image\ttext\tclass\n" + "".join(lines), encoding="utf-8")
    arrays = {f"{s}_images": rng.integers(0, 256, (16, 28, 28, 3), dtype=np.uint8) for s in ("train", "val", "test")}
    labels = {f"{split}_labels": np.arange(16)[:, None] % 2 for split in ("train", "val", "test")}
    np.savez(folder / "pathmnist.npz", **arrays, **labels)
    (folder / "digits.npz").symlink_to(folder / "pathmnist.npz")
    houses = [f"{i},{i * i},{'AB'[i % 2]},{1.5 * i}\n" for i in range(400)]
    (folder / "houses.csv").write_text("row,rooms,place,price\n" + "".join(houses), encoding="utf-8")
    with open(folder / "labels.csv", "w", newline="", encoding="utf-8") as f:
        csv.writer(f).writerows([("picture", "texture"), *rows])
