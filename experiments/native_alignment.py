"""Native alignment: does pretraining on text that was aligned beforehand make a safer model, and for good?

Paper:   Liang et al. 2024, arXiv:2412.03253
Run:     python -m experiments.run --config experiments/native_alignment.py --config.data.path=corpora --sweep
Laptop:  python -m experiments.run --config experiments/native_alignment.py:laptop     (CPU, minutes; `tiny`: seconds)
Expect:  README.md holds the numbers of the runs we keep as reference, with hardware and commit

Each arm pretrains the same network on one corpus; then, each from there, benign tuning, and post-alignment (supervised
tuning, DPO) with benign tuning after it. All arms of a seed begin with the same parameters and see as many tokens.
In the toy the filter is real but its rewriter scripted (experiments/filtering/toy_corpora.py): it tests what aligned
text does, not who aligned it. The paper finds `both` best of all; the toy finds it behind `aligned`, as half of its
text is raw.
"""

import functools
import json
import pathlib
import shutil
import types
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import tokenizers

from alignment import files
from alignment.decoding import sample
from alignment.errors import InputError
from alignment.evaluation import continuations, harmlessness
from alignment.preference import metrics, pairs
from alignment.train import language_model, loop, next_token, optimizer, sharding, step, train_state
from data import records
from data.texts import preferences, text
from data.tokens import tokenizer
from experiments.filtering import toy_corpora as native_web
from experiments.pages import native_alignment as native_page

SETTINGS = ("", "laptop", "tiny")
TOY = "synthetic:toyweb"
ARMS = {  # arm -> (the corpora it reads, share of the documents that were aligned where it mixes two)
    "raw": (("raw",), None),
    "rules": (("rules",), None),
    "dropped": (("dropped",), None),
    "aligned_25": (("raw", "aligned"), 0.25),
    "aligned_50": (("raw", "aligned"), 0.50),
    "aligned": (("aligned",), None),
    "both": (("raw", "aligned"), None),
}
PROBES = {  # file under probes/ -> what its rows need
    "harmlessness": ("prompt", "harmful", "harmless", "paraphrases"),
    "helpfulness": ("prompt", "answer", "wrong"),
}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.seeds = 1  # members of each arm: seed, seed + 1, ...
    c.arms = "aligned"  # some of ARMS, with commas between
    c.init_from = "hf:meta-llama/Meta-Llama-3-8B"  # "" for nothing, hf:<folder or hub id>, run:<workdir>
    c.tokenizer = ""  # "": that of init_from; learn:<tokens> of the raw corpus; or as tokenizer.load takes it
    c.model = dict(
        num_layers=32, model_dim=4_096, num_heads=32, num_kv_heads=8, ffn_dim=14_336, qk_norm=False
    )  # for ""
    c.compute = dict(dtype="bfloat16", remat="full", attention="auto", unroll=1)
    c.data = dict(path="corpora", max_len=4_096, limit=0)  # a folder of raw/, aligned/, ..., heldout/, probes/; texts
    c.toy = dict(num=1_200, missed=0.1, heldout=40, probes=12)  # of synthetic:toyweb, as native_web.prepare takes it
    c.pretrain = stage(steps=2_500, batch_size=1_024, accumulate=16, peak_lr=2e-5, warmup_steps=25, save_every=100)
    c.sft = stage(steps=400, batch_size=128, accumulate=4, peak_lr=1e-5, warmup_steps=12, save_every=100)
    c.dpo = stage(steps=90, batch_size=128, accumulate=16, peak_lr=5e-7, warmup_steps=9, save_every=45)
    c.dpo.beta = 0.1  # larger stays nearer the reference
    c.benign = stage(steps=60, batch_size=128, accumulate=4, peak_lr=1e-5, warmup_steps=2, save_every=60)
    c.post = True  # whether arms get post-alignment too
    c.post_arms = "raw,aligned,both"  # those that do
    c.score_batch = 64  # sequences scored at a time, over all hosts
    c.samples = dict(num=200, max_new_tokens=128, temperature=1.0)  # harmlessness prompts answered; 0: none
    c.resamples = 2_000  # of the bootstrap over seeds and probes
    c.keep_checkpoints = True  # of members that are done
    c.export = "bfloat16"  # weights of the Hugging Face folder each pretrained member leaves; "" leaves none
    c.mesh = dict(data=-1, fsdp=1, tensor=1)  # -1 takes the devices left over
    if arg:
        small(c, arg)
    return c


def stage(**settings: Any) -> ml_collections.ConfigDict:
    """One stage of training: steps (0 leaves it out), rows of a batch, parts it is taken in, learning rate, warm-up."""
    return ml_collections.ConfigDict(dict(accumulate=1, schedule="cosine", weight_decay=0.0, b2=0.95) | settings)


def small(c: ml_collections.ConfigDict, arg: str) -> None:
    c.seeds, c.arms, c.init_from, c.tokenizer = 3, ",".join(ARMS), "", "learn:2000"
    c.compute = dict(dtype="float32", remat="none", attention="auto", unroll=1)
    c.model = dict(num_layers=1, model_dim=64, num_heads=4, num_kv_heads=2, ffn_dim=192, qk_norm=False)
    c.data.update(path=TOY, max_len=128)
    c.pretrain = stage(steps=1_000, batch_size=4, peak_lr=1e-2, warmup_steps=30, save_every=0)
    c.sft = stage(steps=20, batch_size=8, peak_lr=1e-3, warmup_steps=2, save_every=0)
    c.dpo.update(stage(steps=15, batch_size=16, peak_lr=3e-4, warmup_steps=2, save_every=0), beta=0.3)
    c.benign = stage(steps=20, batch_size=8, peak_lr=2e-3, warmup_steps=2, save_every=0)
    c.samples.update(max_new_tokens=24)
    c.keep_checkpoints, c.export = arg == "tiny", ""
    if arg == "tiny":
        c.seeds, c.arms, c.post_arms = 1, "raw,aligned_50,aligned", "raw"
        c.model.update(num_layers=1, model_dim=32, num_heads=2, num_kv_heads=1, ffn_dim=64)
        c.toy.update(num=60, heldout=4, probes=2)
        c.data.max_len = 64
        for name in ("pretrain", "sft", "dpo", "benign"):
            c[name].update(steps=2, batch_size=8, peak_lr=2e-3, warmup_steps=1)
        c.score_batch = 32
        c.samples.update(num=4, max_new_tokens=4)
        c.resamples = 100


def sweep():
    for arm in ARMS:
        for seed in range(3):
            yield {"arms": arm, "seed": seed}


def run(c: ml_collections.ConfigDict, workdir: str) -> dict[str, float]:
    workdir = pathlib.Path(workdir)
    check(c)
    study = Study(c, workdir)
    measured = {}
    for arm in study.arms:
        for seed in range(c.seed, c.seed + c.seeds):
            measured[arm, seed] = study.member(arm, seed)
    return native_page.write(study, measured)


def check(c: ml_collections.ConfigDict) -> None:
    """Refuse what can be seen to be wrong before anything is read or run."""
    for name, arms in (("arms", c.arms), ("post_arms", c.post_arms)):
        unknown = [arm for arm in names(arms) if arm not in ARMS]
        if unknown or (name == "arms" and not names(arms)):
            raise InputError(f"{name}={arms!r}: {(unknown or ['none'])[0]!r} is no arm; there are {', '.join(ARMS)}")
    for name in ("seeds", "resamples", "score_batch"):
        if c[name] < 1:
            raise InputError(f"{name}={c[name]} must be at least 1")
    if c.pretrain.steps < 1:
        raise InputError(f"pretrain.steps={c.pretrain.steps}; an arm is what pretraining makes of it: at least 1")
    if c.samples.num:
        sample.check_options(c.samples.max_new_tokens, c.samples.temperature)
    kind, _, size = c.tokenizer.partition(":")
    if kind == "learn" and not (size.isdigit() and int(size) > 300):
        raise InputError(f"tokenizer={c.tokenizer!r}: learn:<tokens> needs more than 300, such as learn:2000")
    if c.data.path != TOY:
        folder = pathlib.Path(c.data.path)
        needed = {corpus for arm in names(c.arms) for corpus in ARMS[arm][0]} | {"heldout", "probes"}
        missing = sorted(name for name in needed if not (folder / name).is_dir())
        if missing:
            raise InputError(
                f"data.path={c.data.path!r} has no folder {', '.join(missing)}; arms={c.arms!r} read "
                f"{', '.join(sorted(needed))} in it: shards of experiments/filter.py, heldout/ and probes/ as "
                f"experiments/filtering/toy_corpora.py writes them; or take {TOY!r}"
            )


def names(some: str) -> list[str]:
    return [name.strip() for name in some.split(",") if name.strip()]


# What every member shares


class Study:
    """The corpora, the network and what is measured of it, made once; and each member trained from there."""

    def __init__(self, c: ml_collections.ConfigDict, workdir: pathlib.Path):
        self.c, self.workdir, self.arms = c, workdir, names(c.arms)
        self.folder = pathlib.Path(c.data.path)
        if c.data.path == TOY:
            self.folder = workdir / "toyweb"
            counts = native_web.prepare(self.folder, seed=c.seed, **c.toy)
            files.report_counts(workdir, {f"documents of {name}": n for name, n in counts.items()})
        self.mesh = sharding.make_mesh(**c.mesh)
        for name in ("pretrain", "sft", "dpo", "benign"):
            if c[name].steps:
                sharding.check_batch(c[name].batch_size, self.mesh, c[name].accumulate)
        self.tok = self.load_tokenizer()
        self.model = language_model.build(
            c.init_from,
            self.tok,
            model=c.model,
            compute=c.compute,
            rows_are_plain=False,
            export=c.export,
            workdir=workdir,
        )
        self.probes = {name: self.read_probes(name, needed) for name, needed in PROBES.items()}
        self.pairs = {name: self.tokenise(name) for name in self.probes}
        self.templates = {}

    def load_tokenizer(self) -> tokenizer.Tokenizer:
        kind, _, size = self.c.tokenizer.partition(":")
        if kind != "learn":
            return tokenizer.load(self.c.tokenizer or language_model.tokenizer_of(self.c.init_from))
        path = self.workdir / "learned/tokenizer.json"
        if not path.is_file():
            found, _ = records.read(str(self.folder / "raw"))
            learned = learn_tokenizer([record.value["text"] for record in found], int(size))
            files.write(path, lambda f: f.write(learned.encode()))
        return tokenizer.load(str(path))

    def read_probes(self, name: str, needed: tuple[str, ...]) -> list[dict]:
        path = self.folder / f"probes/{name}.jsonl"
        if not path.is_file():
            raise InputError(f"{path} is not there; it holds a row a probe with {', '.join(needed)}")
        rows = files.read_rows(path)
        for n, row in enumerate(rows, 1):
            lacking = [key for key in needed if not row.get(key)]
            if lacking:
                raise InputError(f"{path}:{n} lacks {', '.join(lacking)}; a probe has {', '.join(needed)}")
        if not rows:
            raise InputError(f"{path} is empty; it holds a row a probe with {', '.join(needed)}")
        if name == "harmlessness" and len({len(row["paraphrases"]) for row in rows}) > 1:
            raise InputError(f"{path}: every probe needs the same number of paraphrases")
        return rows

    def tokenise(self, name: str) -> list[continuations.Pair]:
        """Prompt and continuation of every choice of every probe, choices running fastest."""
        encode = functools.partial(self.tok.encode)
        found = []
        for row in self.probes[name]:
            if name == "harmlessness":
                asked, choices = [row["prompt"], *row["paraphrases"]], [row["harmless"], row["harmful"]]
            else:
                asked, choices = [row["prompt"]], [row["answer"], *row["wrong"]]
            for prompt in asked:
                ids = encode(prompt, add_bos=self.tok.adds_bos)
                found += [(ids, encode(choice)) for choice in choices]
        return found

    @functools.cached_property
    def heldout(self) -> dict[str, tuple[Any, int, int]]:
        """Language -> (evaluator, tokens that count, bytes of its held-out text)."""
        found = {}
        for path in sorted((self.folder / "heldout").glob("*.jsonl*")):
            texts, _, _ = text.load(path=str(path), heldout_fraction=0, **self.reading)
            num_bytes = sum(len(record.value["text"].encode()) for record in records.read(str(path))[0])
            batches = self.batches(texts, self.c.pretrain.batch_size, endless=False)
            num_tokens = int(sum(stop - first - 1 for row in texts.rows for _, first, stop in row))
            found[path.name.partition(".")[0]] = (loop.evaluator(self.loss_fn, batches), num_tokens, num_bytes)
        if not found:
            raise InputError(f"{self.folder / 'heldout'} has no .jsonl file; it holds one of clean text a language")
        return found

    @property
    def reading(self) -> dict[str, Any]:
        limit = self.c.data.limit
        return dict(kind="documents", tokenizer=self.tok, max_len=self.c.data.max_len, limit=limit, seed=self.c.seed)

    def batches(self, texts, batch_size: int, **options) -> Any:
        return text.batches(texts, batch_size=batch_size, **options, **sharding.row_share(self.mesh))

    @functools.cached_property
    def loss_fn(self) -> step.LossFn:
        return next_token.loss_fn(self.model, self.mesh)

    @functools.lru_cache(maxsize=1)  # noqa: B019  (one study a process; members of an arm come one after the other)
    def corpus(self, arm: str) -> text.Texts:
        """The arm's training text."""
        corpora, share = ARMS[arm]
        paths = [str(self.folder / name) for name in corpora]
        if share is not None:
            paths = [str(mixed(self.workdir / f"mixed/{arm}.jsonl", paths, share))]
        train, _, counts = text.load(path=paths, heldout_fraction=0, **self.reading)
        print(f"{arm}: " + ", ".join(f"{number} {what}" for what, number in counts.items()), flush=True)
        return train

    # Stages

    def recipe(self, name: str) -> tuple[tuple[str, Any], ...]:
        """What the update of a stage depends on."""
        unused = ("batch_size", "save_every")
        return tuple(sorted((key, value) for key, value in self.c[name].items() if key not in unused))

    @functools.cache  # noqa: B019
    def stage(self, recipe: tuple[tuple[str, Any], ...]) -> tuple[Any, step.UpdateFn]:
        """(optimizer, update): one object for all members and stages of one recipe, so that it is compiled once."""
        settings = dict(recipe)
        beta, accumulate = settings.pop("beta", None), settings.pop("accumulate")
        tx = optimizer.adamw(total_steps=settings.pop("steps"), **settings)
        loss_fn = self.loss_fn if beta is None else pairs.loss_fn(self.model, "dpo", mesh=self.mesh, beta=beta)
        return tx, step.build(loss_fn, tx, accumulate=accumulate, rate_fn=optimizer.learning_rate)

    def begin(self, name: str, params: Any, seed: int) -> train_state.TrainState:
        """A state at step 0; where many members follow, what does not depend on them is made once and copied."""
        recipe = self.recipe(name)
        if recipe not in self.templates:
            tx, _ = self.stage(recipe)
            example_BT = jnp.zeros((1, 4), jnp.int32)
            state = train_state.create(self.model, tx, example_BT, seed=seed, mesh=self.mesh, params=params)
            if len(self.arms) * self.c.seeds > 1:
                self.templates[recipe] = jax.tree.map(jnp.copy, state.replace(params=None))
            return state
        template = jax.tree.map(jnp.copy, self.templates[recipe])
        rng = jax.device_put(jax.random.split(jax.random.PRNGKey(seed))[0], template.rng.sharding)
        return template.replace(params=params, rng=rng)

    @functools.cached_property
    def draw_fn(self) -> Any:
        """Parameters from a seed."""
        example_BT = jnp.zeros((1, 4), jnp.int32)
        places = train_state.param_shardings(self.model, example_BT, self.mesh)
        init = lambda key: nn.meta.unbox(self.model.init(key, example_BT)["params"])  # noqa: E731
        return jax.jit(init, out_shardings=places)

    def train(self, name: str, params: Any, batches: Any, folder: pathlib.Path, seed: int) -> Any:
        """Parameters after a stage, which resumes by itself."""
        settings, state = self.c[name], self.begin(name, params, seed)
        state, _ = loop.fit(
            self.stage(self.recipe(name))[1],
            train_state.with_reference(state) if name == "dpo" else state,
            batches,
            {},
            self.mesh,
            folder / name,
            steps=settings.steps,
            log_every=max(settings.steps // 5, 1),
            save_every=settings.save_every,
            keep=1,
            unit="pairs" if name == "dpo" else "rows",
            units_per_step=settings.batch_size,
            finish_fn=metrics.finish if name == "dpo" else dict,
            sinks=(),
            label=f"{folder.name} {name}",
        )
        return state.params

    def tuning(self, name: str, seed: int) -> Any:
        """Batches of a stage after pretraining."""
        settings, path = self.c[name], str(self.folder / f"probes/{'pairs' if name == 'dpo' else name}.jsonl")
        if name == "dpo":
            batches_fn = functools.partial(preferences.batches, self.read_pairs(path), **sharding.row_share(self.mesh))
            return batches_fn(batch_size=settings.batch_size, seed=seed)
        return self.batches(self.read_answers(path), settings.batch_size, seed=seed)

    @functools.cache  # noqa: B019
    def read_pairs(self, path: str) -> preferences.Pairs:
        return preferences.load(path=path, tokenizer=self.tok, heldout_fraction=0, max_len=self.c.data.max_len)[0]

    @functools.cache  # noqa: B019
    def read_answers(self, path: str) -> text.Texts:
        return text.load(path=path, heldout_fraction=0, **self.reading | {"kind": "answers"})[0]

    # Members

    def member(self, arm: str, seed: int) -> dict[str, dict[str, Any]]:
        """What is measured of one arm and seed, by state: base, base_benign, post, post_benign."""
        c, folder = self.c, self.workdir / f"members/{arm}-{seed}"
        if (folder / "measured.json").is_file():
            return json.loads((folder / "measured.json").read_text())
        fresh = language_model.params(c.init_from, self.model, self.mesh)
        if fresh is None:
            fresh = self.draw_fn(jax.random.PRNGKey(seed))
        batches = self.batches(self.corpus(arm), c.pretrain.batch_size, seed=seed)
        base = self.train("pretrain", fresh, batches, folder, seed)
        found = {"base": self.measure(base, seed)}
        if c.export:
            language_model.export(
                folder / "export/hf", base, self.model, self.tok, dtype=c.export, init_from=c.init_from
            )
        found |= self.after_benign("base", base, folder, seed)
        if c.post and arm in names(c.post_arms) and (c.sft.steps or c.dpo.steps):
            post = folder / "post"
            for name in ("sft", "dpo"):
                if c[name].steps:
                    base = self.train(name, base, self.tuning(name, seed), post, seed)
            found["post"] = self.measure(base, seed)
            found |= self.after_benign("post", base, post, seed)
        files.write(folder / "measured.json", lambda f: f.write(json.dumps(found).encode()))
        if not c.keep_checkpoints:
            for checkpoints in folder.rglob("checkpoints"):
                shutil.rmtree(checkpoints, ignore_errors=True)
        return found

    def after_benign(self, what: str, params: Any, folder: pathlib.Path, seed: int) -> dict[str, dict[str, Any]]:
        if not self.c.benign.steps:
            return {}
        params = self.train("benign", jax.tree.map(jnp.copy, params), self.tuning("benign", seed), folder, seed)
        return {f"{what}_benign": self.measure(params, seed)}

    def measure(self, params: Any, seed: int) -> dict[str, Any]:
        """Lists over probes of what one set of parameters does, and bits per byte of each language."""
        options = dict(mesh=self.mesh, pad_id=self.tok.pad_id, batch_size=self.c.score_batch)
        found = {name: continuations.logps(self.model, params, pairs, **options) for name, pairs in self.pairs.items()}
        num = len(self.probes["harmlessness"])
        total_PK2, length_PK2 = (x.reshape(num, -1, 2) for x in found["harmlessness"])
        harmless_PK = harmlessness.preferred(
            total_PK2[..., 0], length_PK2[..., 0], total_PK2[..., 1], length_PK2[..., 1]
        )
        sizes = [1 + len(row["wrong"]) for row in self.probes["helpfulness"]]
        ends = np.cumsum(sizes)[:-1]
        choices = zip(*(np.split(x, ends) for x in found["helpfulness"]))
        right_P = [int(continuations.best(total[None], length[None])[0] == 0) for total, length in choices]
        held = types.SimpleNamespace(params=params, frozen={})
        with sharding.activations(self.mesh):
            losses = {name: fn(held, self.mesh)["loss"] for name, (fn, _, _) in self.heldout.items()}
        bits = {name: losses[name] * tokens / size / np.log(2) for name, (_, tokens, size) in self.heldout.items()}
        out = {"harmless": harmless_PK[:, 0].tolist(), "paraphrased": harmless_PK[:, 1:].tolist(), "right": right_P}
        return out | {"bits_per_byte": {name: float(b) for name, b in bits.items()}} | self.generate(params, seed)

    def generate(self, params: Any, seed: int) -> dict[str, Any]:
        """Whether answers that the model writes itself give harm away, and the first few of them."""
        rows = self.probes["harmlessness"][: self.c.samples.num]
        if not rows:
            return {"harmful_written": [], "written": []}
        prompts = [self.tok.encode(row["prompt"], add_bos=self.tok.adds_bos) for row in rows]
        options = dict(max_new_tokens=self.c.samples.max_new_tokens, temperature=self.c.samples.temperature)
        options |= dict(rng=jax.random.PRNGKey(seed), stop_ids=self.tok.stop_ids, pad_id=self.tok.pad_id)
        with sharding.activations(self.mesh):
            answers = [self.tok.decode(ids) for ids in sample.answers(self.model, params, prompts, **options)]
        marked = [harmlessness.is_marked(answer, row.get("marks", ())) for answer, row in zip(answers, rows)]
        return {"harmful_written": list(map(int, marked)), "written": answers[:: max(1, len(answers) // 4)][:4]}


def learn_tokenizer(texts: list[str], vocab_size: int) -> str:
    """A byte-level BPE of some texts, as the content of a tokenizer.json."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=["<|endoftext|>"], initial_alphabet=letters, show_progress=False
    )
    made.train_from_iterator(texts, trainer)
    return made.to_str()


def mixed(path: pathlib.Path, folders: list[str], share: float) -> pathlib.Path:
    """A file of the raw documents, a share of them as the aligned corpus has them, or left out where it dropped them.

    Which documents is drawn from their ids, so that a larger share holds all that a smaller one does.
    """
    if path.is_file():
        return path
    raw, aligned = ([record.value for record in records.read(folder)[0]] for folder in folders)
    by_id = {str(value["id"]): value for value in aligned if "id" in value}
    if not by_id:
        raise InputError(f"{folders[1]}: its documents have no `id`, so none can stand in for a raw one")
    kept = []
    for value in raw:
        name = str(value.get("id", ""))
        is_aligned = native_web.draw(name) < share
        found = by_id.get(name) if is_aligned else value
        kept += [] if found is None else [found]
    files.write_rows(path, kept)
    return path


METRICS = {
    "harmlessness/*": ("share of probes for which the harmless answer is the likelier one", "higher"),
    "helpfulness/*": ("share of facts known: the right answer of four is the likeliest; chance is 0.25", "higher"),
    "harmful_written/*": ("share of answers written at temperature that bear a harmful mark", "lower"),
    "retention/*": ("share of harmlessness that is left after benign tuning", "higher"),
    "paraphrase_drop/*": ("harmlessness lost when the probes are put in other words", "lower"),
    "bits_per_byte/*": ("loss on held-out text, in bits a byte, so that tokenizers do not matter", "lower"),
    "stability/*/seed_sd": ("standard deviation of harmlessness over seeds", "lower"),
    "post_alignment/*/harmlessness": ("harmlessness after supervised tuning and DPO", "higher"),
    "post_alignment/*/helpfulness": ("facts known after supervised tuning and DPO", "higher"),
    "post_alignment/*/harmful_written": ("answers with a harmful mark after supervised tuning and DPO", "lower"),
    "post_alignment/*/bits_per_byte": ("bits a byte on held-out text after supervised tuning and DPO", "lower"),
    "post_alignment/*": ("the same measure after supervised tuning and DPO",),
}


def headline(summary: dict[str, float]) -> str:
    """The page's first sentence."""
    arms = {name.split("/")[1]: x for name, x in summary.items() if name.startswith("harmlessness/") and x is not None}
    if not arms:
        return ""
    best = max(arms, key=arms.get)
    words = f"Pretrained on {best} the model prefers the harmless answer in {100 * arms[best]:.1f} % of probes"
    if best == "raw" or "raw" not in arms:
        return f"{words}, most of {len(arms)} corpora." if len(arms) > 1 else f"{words}."
    return f"{words}, against {100 * arms['raw']:.1f} % on the raw one."
