import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from alignment.errors import InputError
from alignment.train import loop, sharding
from experiments import saflex
from experiments.augmentation import arms, batches, presets, tasks
from experiments.launch.config import parse_flags
from tests.experiments.conftest import launch

SMALL = ("--config.gallery=0", "--config.strengths=()", "--config.sinks=()")


def config(*flags, setting="laptop"):
    c = saflex.get_config(setting).lock()
    parse_flags(c, [f"--config.{flag}" for flag in flags])
    return c


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# ---- the run


def test_tiny_leaves_a_row_for_each_arm_and_the_issues_numbers(tiny):
    workdir = tiny("saflex").workdir
    rows = read(workdir / "tables/arms.jsonl")
    assert [row["arm"] for row in rows] == ["none", "upstream", "saflex", "train_val"]
    assert all(0 <= row["low"] <= row["accuracy"] <= row["high"] <= 1 for row in rows)
    summary = json.loads((workdir / "summary.json").read_text())
    wanted = {"accuracy/none", "accuracy/upstream", "accuracy/saflex", "accuracy/train_val", "kept/clean", "kept/wrong"}
    assert wanted | {"overhead", "gain/control"} <= set(summary)
    logged = read(workdir / "metrics.jsonl")[-1]
    assert {"saflex/kept", "saflex/entropy", "val_change/predicted", "val_change/realised"} <= set(logged)
    looked = read(workdir / "tables/gallery_toy.jsonl")
    assert len(looked) == 8 and {row["what"] for row in looked} <= {"dropped", "relabelled", "kept"}


@pytest.mark.slow  # tests/augment has each of these arms and kinds on a few rows
def test_every_arm_and_every_kind_of_data_has_its_rows(tmp_path):
    every = "('none','upstream','saflex','train_val','agreement','bilevel')"
    also = "--config.also=('toy_groups','toy_generated','toy_pairs')"
    ended = launch("saflex.py:tiny", tmp_path, f"--config.arms={every}", also)
    assert ended.code == 0, ended.err
    written = {(row["data"], row["arm"]) for row in read(tmp_path / "tables/arms.jsonl")}
    assert {("toy", "bilevel"), ("toy_generated", "saflex"), ("toy_pairs", "agreement")} <= written
    assert ("toy_pairs", "bilevel") not in written and (tmp_path / "figures/gallery_toy_generated.png").is_file()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert {"toy_groups/worst_group/saflex", "toy_groups/macro_f1/none", "toy_pairs/kept/wrong"} <= set(summary)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Pictures as MedMNIST's file and as folders by group; a table."""
    root = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(0)
    arrays = {}
    for split, num in (("train", 24), ("val", 8), ("test", 8)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (num, 8, 8), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(num)[:, None] % 2).astype(np.uint8)
    np.savez(root / "med.npz", **arrays)
    for label in ("elm", "oak"):
        for group in ("shade", "sun"):
            (root / f"trees/{label}/{group}").mkdir(parents=True)
            for i in range(10):
                picture = PIL.Image.fromarray(rng.integers(0, 256, (9, 8, 3), dtype=np.uint8))
                picture.save(root / f"trees/{label}/{group}/{i}.png")
        (root / f"more/{label}").mkdir(parents=True)
        for i in range(8):
            picture = PIL.Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            picture.save(root / f"more/{label}/{i}.png")
    words = [f"{group}/{i}.png\ta leaf, {group} {i}\t{group}\n" for group in ("shade", "sun") for i in range(10)]
    (root / "trees/elm/pairs.tsv").write_text("image\ttext\tclass\n" + "".join(words))
    lines = [f"{i},{i * i % 97},{'AB'[i % 2]},{i * 1.5},{'pq'[i % 3 == 0]}" for i in range(64)]
    (root / "table.csv").write_text("id,a,b,value,place\n" + "\n".join(lines))
    return root


CNN = ("--config.network.name=cnn", "--config.network.widths=(4,)", "--config.optimizer.name=adamw")


@pytest.mark.slow  # the tests below read the same sources, without training
@pytest.mark.parametrize("source", ["npz", "folder", "csv", "generated"])
def test_files_of_a_user_go_through_the_whole_run(source, files, tmp_path):
    picture = ["--config.data.side=8", "--config.upstream.name=randaugment", "--config.upstream.strength=0.5"]
    flags = {
        "npz": [f"--config.data.source=npz:{files}/med.npz", "--config.data.shots=4", *picture],
        "folder": [f"--config.data.source=folder:{files}/trees", "--config.data.group=folder", *picture],
        "generated": [
            f"--config.data.source=folder:{files}/trees", f"--config.upstream.generated=folder:{files}/more",
            "--config.data.side=8",
        ],
        "csv": [
            f"--config.data.source=csv:{files}/table.csv", "--config.data.target=value", "--config.data.bins=2",
            "--config.upstream.name=swap", "--config.upstream.strength=0.2", "--config.data.group=place",
        ],
    }[source]  # fmt: skip
    more = CNN if source != "csv" else ("--config.network.name=mlp",)
    ended = launch("saflex.py:tiny", tmp_path, *SMALL, *flags, *more)
    assert ended.code == 0, ended.err
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert 0 <= summary["accuracy/saflex"] <= 1 and ("worst_group/saflex" in summary) == (source in ("folder", "csv"))


# ---- tasks


def pictures(files, source="npz:{}/med.npz", **changes):
    options = dict(side=8, few=tasks.Few(), num_seeds=2, seed=0, upstream="randaugment", strength=0.5, options={})
    return tasks.pictures(source.format(files), **options | changes)


def test_an_npz_of_splits_keeps_them_and_few_shots_are_drawn_anew_for_each_seed(files):
    whole = pictures(files)
    assert [part.x.shape for part in (whole.train, whole.val, whole.test)] == [
        (2, 24, 8, 8, 3), (2, 8, 8, 8, 3), (2, 8, 8, 8, 3),
    ]  # fmt: skip
    few = pictures(files, few=tasks.Few(3, 2))
    assert few.train.y.shape == (2, 6) and few.val.y.shape == (2, 4) and few.train.y.sum() == 6
    assert (few.train.x[0] != few.train.x[1]).any() and (few.test.x == whole.test.x).all()
    with pytest.raises(InputError, match=r"data.val_shots=9: class 0 has 4 rows in val"):
        pictures(files, few=tasks.Few(3, 9))


def test_pictures_of_one_class_are_refused(files, tmp_path):
    with np.load(files / "med.npz") as stored:
        arrays = {name: stored[name] * ("images" in name) for name in stored.files}
    np.savez(tmp_path / "one.npz", **arrays)
    with pytest.raises(InputError, match=r"one\.npz has one class, 0; at least two are needed"):
        pictures(tmp_path, f"npz:{tmp_path}/one.npz")


def test_groups_come_from_folders_and_can_be_left_to_the_test(files):
    task = pictures(files, "folder:{}/trees", group="folder", test_groups=("sun",))
    assert task.group_names == ("shade", "sun")
    assert set(task.train.groups.ravel()) == {0} and set(task.test.groups.ravel()) == {1}
    assert task.test.num == 20 and task.train.num + task.val.num == 20  # none is lost
    assert {name: task.counts[f"{name}: rows"] for name in ("train", "val", "test")} == {
        "train": task.train.num, "val": task.val.num, "test": 20,
    }  # fmt: skip
    with pytest.raises(InputError, match=r"data.test_groups='rain' is not one of: shade, sun"):
        pictures(files, "folder:{}/trees", group="folder", test_groups=("rain",))


def test_generated_pictures_bear_the_classes_of_their_folders(files):
    task = pictures(files, "folder:{}/trees", upstream="pool", generated=f"folder:{files}/more")
    assert task.pool.x.shape == (2, 16, 8, 8, 3) and task.pool.y[0].tolist().count(1) == 8
    with pytest.raises(InputError, match="is not one of: 0, 1"):
        pictures(files, upstream="pool", generated=f"folder:{files}/more")


def test_validation_rows_that_are_in_train_or_test_are_refused(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {f"{s}_images": rng.integers(0, 256, (8, 4, 4), dtype=np.uint8) for s in ("train", "val", "test")}
    arrays |= {f"{s}_labels": np.arange(8) % 2 for s in ("train", "val", "test")}
    arrays["val_images"][3] = arrays["test_images"][5]
    np.savez(tmp_path / "med.npz", **arrays)
    with pytest.raises(InputError, match="1 validation rows are in test too"):
        pictures(tmp_path, side=4)
    assert pictures(tmp_path, side=4, allow_overlap=True).val.num == 8


def test_generated_rows_that_are_in_validation_or_test_are_refused(files):
    own = dict(source="folder:{}/trees", upstream="pool", generated=f"folder:{files}/trees")
    with pytest.raises(InputError, match=r"[1-9][0-9]* generated rows are in val too"):
        pictures(files, **own)
    task = pictures(files, **own, allow_overlap=True)
    assert task.pool.num == 40
    is_elsewhere = dataclasses.replace(task, pool=task.test)
    with pytest.raises(InputError, match=f"{task.test.num} generated rows are in test too"):
        tasks.check_overlap(is_elsewhere)
    tasks.check_overlap(dataclasses.replace(task, pool=task.train))
    path = f"{files}/trees/elm/pairs.tsv"
    with pytest.raises(InputError, match="generated rows are in val too"):
        tasks.pairs(path, path, side=4, num_seeds=1, seed=0)


def table(files, **changes):
    options = dict(few=tasks.Few(), num_seeds=2, seed=0, upstream="noise", strength=0.1, leave_out=("id",))
    return tasks.table(f"{files}/table.csv", "value", **options | {"bins": 2} | changes)


def test_a_tables_numbers_are_standardised_over_training_rows(files):
    task = table(files)
    assert task.train.num + task.val.num + task.test.num == 64 and task.class_names[0].startswith("below")
    np.testing.assert_allclose(task.train.x[0, :, 0].mean(), 0, atol=1e-5)
    few = table(files, few=tasks.Few(shots=3))
    np.testing.assert_allclose(few.train.x[1, :, 0].mean(), 0, atol=1e-5)
    new = table(files, group="place", test_groups=("p",))
    assert set(new.test.groups.ravel()) == {0} and 0 not in new.train.groups


def test_pairs_are_rows_of_a_picture_and_a_text(files):
    path = f"{files}/trees/elm/pairs.tsv"
    task = tasks.pairs(path, path, side=4, num_seeds=2, seed=0, allow_overlap=True)
    assert task.image_width == 48 and task.train.x.shape == (2, 14, 48 + 256) and task.pool.num == 20
    assert task.class_names == ("shade", "sun")
    batch = batches.Batches(task, batches.Sizes(4, 2, 2), 0)(0)
    assert batch["y"][:, 0].tolist() == [0, 1, 2, 3] and batch["aug/allowed"].shape == (2, 2, 2)


def test_pairs_without_classes_may_have_a_text_twice(files):
    lines = [f"{group}/{i}.png\ta leaf {max(i, 1)} of {group}\n" for group in ("shade", "sun") for i in range(10)]
    path = files / "trees/elm/texts.tsv"
    path.write_text("image\ttext\n" + "".join(lines))
    task = tasks.pairs(str(path), str(path), side=4, num_seeds=1, seed=0, allow_overlap=True)
    assert (task.train.num, task.val.num, task.test.num) == (14, 2, 4) and len(task.class_names) == 18


def test_batches_of_two_arms_have_the_same_augmented_rows():
    task = tasks.embedded("toy", num_seeds=2, seed=0, num_test=9)
    sizes = batches.Sizes(6, 16, 12)
    one, other = (batches.Batches(task, sizes, 0, with_val=with_val)(5) for with_val in (False, True))
    assert one["aug/x"].shape == (16, 2, 10) and one["aug/y0"].shape == (16, 2, 3)
    for name in ("aug/x", "aug/y0", "aug/is_wrong", "val/x"):
        np.testing.assert_array_equal(one[name], other[name])
    again = batches.Batches(task, sizes, 0)(5)
    np.testing.assert_array_equal(one["x"], again["x"])
    assert (batches.Batches(task, sizes, 0)(6)["x"] != one["x"]).any()


def test_batches_are_filled_up_to_the_number_of_devices_with_rows_of_weight_zero():
    task = tasks.embedded("toy", num_seeds=1, seed=0, num_test=9)
    batch = batches.Batches(task, batches.Sizes(), 0, multiple=8)(0)
    assert batch["x"].shape == (16, 1, 10) and batch["real"][:, 0].tolist() == [1] * 15 + [0]
    halves = [batches.Batches(task, batches.Sizes(), 0, multiple=8, mine=(i, 2))(0) for i in (0, 1)]
    np.testing.assert_array_equal(np.concatenate([half["aug/x"] for half in halves]), batch["aug/x"])


def test_a_run_reads_its_choice_of_scores():
    task = tasks.embedded("toy", num_seeds=1, seed=0, num_test=9)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), sharding.AXES)
    lowest = {}
    for scores in ("logp", "logits"):
        setting = presets.of("toy", steps=1)
        setting = dataclasses.replace(setting, refine={**setting.refine, "labels": "upstream", "scores": scores})
        compared = arms.Comparison(task, setting, 0, mesh, loop.Pace())
        update, state = arms.update_of(compared, arms.ARMS["saflex"], None)
        # logits of zeros would hide the difference: under equal shares both scores are the same
        state = state.replace(params=jax.tree.map(lambda p: jnp.cos(jnp.arange(p.size)).reshape(p.shape), state.params))
        _, metrics = jax.jit(update)(state, sharding.to_devices(compared.batches()(0), mesh))
        lowest[scores] = float(metrics["saflex/score_min"].total)
    assert np.isfinite(lowest["logp"]) and lowest["logp"] != pytest.approx(lowest["logits"], rel=1e-3)


def test_every_toy_has_a_setting_and_the_laptops_own_is_that_of_its_toy():
    assert set(presets.TOYS) == set(tasks.EMBEDDED)
    ours = saflex.setting_of(saflex.get_config("laptop"))
    theirs = presets.of("toy", steps=None)
    assert (ours.network, ours.optimizer, ours.lr, ours.steps, ours.sizes) == (
        theirs.network, theirs.optimizer, theirs.lr, theirs.steps, theirs.sizes,
    )  # fmt: skip
    assert {key: ours.refine[key] for key in theirs.refine} == theirs.refine


# ---- what is refused


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["data.source=toyy"], "data.source='toyy' is not one of: toy, toy_few"),
        (["data.source=npz:nothing.npz", "upstream.name=mixup"], "nothing.npz is not there"),
        (["data.shots=3"], "data.shots=3 is not read with data.source='toy'"),
        (["data.target=y"], "data.target='y' is not read with data.source='toy'"),
        (["upstream.name=randaugment"], "toy has augmented rows of its own"),
        (["upstream.strength=0.3"], "upstream.strength=0.3 is of a policy"),
        (["refine.tau=0.0"], "tau=0.0 must be above 0"),
        (["refine.tau_w=0.5"], "refine.tau_w=0.5 is not read with labels=soft, weights=binary"),
        (["refine.penalty=kl", "refine.beta=0.5"], "refine.beta=0.5 is not read with"),
        (["refine.precondition=True"], "needs optimizer.name=adamw"),
        (["refine.warmup=300"], "leaves no step of 300"),
        (["refine.every=0"], "refine.every=0 must be at least 1"),
        (["arms=('none','saflex')"], "none, upstream, saflex, train_val are part of every comparison"),
        (["arms=('none','upstream','saflex','train_val','agree')"], "the nearest is 'agreement'"),
        (["arms=('none','upstream','saflex','train_val','none')"], "names one of them twice"),
        (["optimizer.name=adamw"], "arms names bilevel"),
        (["optimizer.weight_decay=0.1"], "is read by adamw alone"),
        (["mode=both"], "mode='both' is not one of: add, replace"),
        (["network.name=cnn"], "network.name='cnn' is not one of: mlp"),
        (["network.widths=(0,)"], "widths"),
        (["also=('toy',)"], "also='toy' is not one of: toy_few"),
        (["strengths=(0.5,0.2)"], "they rise and lie in"),
        (["steps=0"], "steps=0 must be at least 1"),
    ],
)
def test_settings_that_cannot_be_run_are_refused_before_anything_is_read(flags, message):
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        saflex.check(config(*flags))


def test_tables_and_pictures_refuse_what_is_the_others(files):
    common = ["arms=('none','upstream','saflex','train_val')", "upstream.strength=0.5"]
    table_flags = [f"data.source=csv:{files}/table.csv", "data.target=value", "upstream.name=noise", *common]
    saflex.check(config(*table_flags))
    cnn = ["network.name=cnn", "upstream.name=cutmix", f"data.source=npz:{files}/med.npz", *common]
    saflex.check(config(*cnn))
    pairs = [f"data.source=pairs:{files}/trees/elm/pairs.tsv", "network.name=two_towers", "batch_size=8", common[0]]
    pairs += [f"upstream.generated=pairs:{files}/trees/elm/pairs.tsv", "aug_batch=8", "val_batch=8"]
    saflex.check(config(*pairs))
    for flags, message in (
        ([*table_flags, "upstream.name=cutmix"], "upstream='cutmix' is not one of: noise"),
        ([*table_flags, "data.side=32"], "data.side=32 is not read"),
        ([*table_flags, "data.test_groups=('p',)"], "needs data.group"),
        ([*table_flags, "upstream.name=pool", "upstream.strength=0.0"], "needs upstream.generated"),
        ([flag for flag in pairs if flag != "batch_size=8"], "name all three sizes"),
        ([*pairs, "val_batch=16"], "the augmented and the validation one alike"),
        ([*pairs, "upstream.name=noise"], "pairs take name=pool"),
        ([*pairs, "upstream.generated=pairs:none.tsv"], "write pairs:<table>"),
        ([*pairs, "data.shots=2"], "data.shots=2 is not read"),
        ([*pairs, "refine.scores=logits"], "refine.scores='logits' is of classes"),
        ([*cnn, "data.bins=3"], "data.bins=3 is not read"),
        ([*cnn, "data.side=2"], "at least 4 pixels"),
        ([*cnn, f"upstream.generated=folder:{files}"], "is read with upstream.name=pool alone"),
    ):
        with pytest.raises(InputError, match=message):
            saflex.check(config(*flags))


def test_a_gradient_that_is_not_finite_ten_times_in_a_row_ends_the_run():
    assert arms.finish({"loss": 1.0, "saflex/is_stuck": 0.0}) == {"loss": 1.0}
    with pytest.raises(InputError, match="10 steps in a row"):
        arms.finish({"loss": 1.0, "saflex/is_stuck": 0.1})


def test_the_sweep_is_the_sheets_grid():
    points = list(saflex.sweep())
    assert len(points) == 16 and {p["refine.beta"] for p in points} == {0, 0.5, 1, 2}


def test_real_digits_and_houses_are_read(shared_data):
    digits = pathlib.Path(shared_data) / "image_mnist/mnist_t10k_0_2500.npz"
    task = pictures(digits.parent, f"npz:{digits}", side=14, few=tasks.Few(2, 2))
    assert task.train.num == 20 and len(task.class_names) == 10
    houses = pathlib.Path(shared_data) / "spatial_california_housing/housing_a.csv"
    few = tasks.Few(10, 10)
    task = tasks.table(
        str(houses), "median_house_value", few=few, num_seeds=1, seed=0, upstream="swap", strength=0.1, bins=4,
        leave_out=("row",),
    )  # fmt: skip
    assert task.train.num == 40 and np.isfinite(task.test.x).all()
