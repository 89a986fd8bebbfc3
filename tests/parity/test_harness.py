"""`flax` beside lm-evaluation-harness's own `hf`: the same weights, the same tasks, in fp32 on a CPU.

The medical questions are public files beside a developer's checkout; without them these tests are skipped.
"""

import functools
import json
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

pytest.importorskip("torch")
pytest.importorskip("accelerate")
lm_eval = pytest.importorskip("lm_eval")
huggingface = pytest.importorskip("lm_eval.models.huggingface")
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from alignment.decoding.engine import Engine  # noqa: E402
from alignment.evaluation import harness  # noqa: E402
from alignment.models import decoder  # noqa: E402
from alignment.train import language_model  # noqa: E402
from data.tokens import (  # noqa: E402
    learning,
    pieces,
    tokenizer,
)
from data.toys import synthetic  # noqa: E402
from experiments.decoding import museum_tasks  # noqa: E402

MAX_LENGTH = 384
NUM_ROWS = 16  # of each file
SMOL = pathlib.Path(__file__).resolve().parents[2] / "models/smollm2"
TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}[assistant]"
)
TEMPLATE += " {% endif %}"


def flax(model, params, tok, max_length):
    def engine_fn(num_tokens):
        options = dict(num_slots=4, max_len=num_tokens, chunk=32, block=32, num_steps=8)
        return Engine(model, params, pieces=pieces.pieces(tok), **options)

    return harness.flax_lm(model, params, tok, engine_fn=engine_fn, max_length=max_length)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Our class and the harness's, over one folder of random weights."""
    folder = tmp_path_factory.mktemp("model")
    rows = synthetic.questions("test", 56)
    learned = json.loads(learning.byte_pairs([json.dumps(row) for row in rows], 400))
    (folder / "tokenizer.json").write_text(json.dumps(_with_bos(learned)))
    names = dict(bos_token="<s>", eos_token="</s>", tokenizer_class="PreTrainedTokenizerFast", add_bos_token=True)
    (folder / "tokenizer_config.json").write_text(json.dumps({**names, "chat_template": TEMPLATE}))
    tok = tokenizer.load(str(folder))
    model = decoder.DecoderLM(
        vocab_size=tok.vocab_size, num_layers=2, model_dim=32, num_heads=4, num_kv_heads=2, ffn_dim=48
    )
    boxed = jax.jit(model.init)(jax.random.PRNGKey(0), jnp.zeros((1, 4), jnp.int32))["params"]
    params = jax.tree.map(lambda leaf: 3 * np.asarray(leaf), nn.meta.unbox(boxed))
    language_model.export(folder / "hf", params, model, tok, dtype="float32")
    options = dict(device="cpu", dtype="float32", batch_size=8, max_length=MAX_LENGTH)
    return flax(model, params, tok, MAX_LENGTH), huggingface.HFLM(pretrained=str(folder / "hf"), **options)


def _with_bos(learned):
    """The tokenizer with `<s>` before every text, and `</s>`."""
    vocab = learned["model"]["vocab"]
    for name in ("<s>", "</s>"):
        vocab[name] = len(vocab)
        added = dict(id=vocab[name], content=name, special=True, normalized=False)
        learned["added_tokens"].append({**added, "single_word": False, "lstrip": False, "rstrip": False})
    single = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    learned["post_processor"] = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [vocab["<s>"]], "tokens": ["<s>"]}},
    }
    return learned


def compare(ours, theirs, folder, names, **options):
    """Both classes on the same tasks: log-likelihoods, greedy flags, texts and accuracies.

    Returns:
        The number of requests that were compared.
    """
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    options = dict(tasks=list(names), task_manager=manager, bootstrap_iters=0, **options)
    results, expected = (lm_eval.simple_evaluate(model=lm, **options) for lm in (ours, theirs))
    num = 0
    for name in names:
        assert results["n-samples"][name]["effective"] > 0
        for key, value in expected["results"][name].items():
            if key.partition(",")[0] in ("acc", "acc_norm", "exact_match"):
                assert results["results"][name][key] == value, (name, key)
        for sample, peer in zip(results["samples"][name], expected["samples"][name], strict=True):
            assert sample["arguments"] == peer["arguments"]
            for (answer,), (wanted,) in zip(sample["resps"], peer["resps"], strict=True):
                num += 1
                if isinstance(wanted, str):
                    assert answer == wanted
                    continue
                np.testing.assert_allclose(float(answer[0]), float(wanted[0]), atol=1e-3)
                assert bool(answer[1]) == bool(wanted[1])
    return num


def ask(kind, *all_args):
    return [Instance(request_type=kind, doc={}, arguments=args, idx=i) for i, args in enumerate(all_args)]


def test_edges_of_contexts_and_continuations_are_the_harness_s(both):
    ours, theirs = both
    num_cut_before = ours.num_cut
    pairs = [
        ("", "The owl clock"),  # an empty context
        ("", "<s>The owl clock"),  # which the text brings along
        ("Where is the owl clock? ", "in the north hall"),  # a blank at the end
        ("Where is the owl clock?\n\n", " in the north hall"),
        ("Where is", " the owl clock?"),
        ("Whe", "re is the owl clock?"),  # an edge within a token
        ("<s>Where is", " the owl clock?"),  # BOS written out
        (" ".join(["The owl clock is in the north hall."] * 90), " Yes"),  # longer than the model reads
        (" ".join(["The owl clock is in the north hall."] * 90), " Yes, it is"),
    ]
    answers = ours.loglikelihood(ask("loglikelihood", *pairs))
    # One at a time, because hf 0.4.13 computes equal texts that are split at different places once, and then reads the
    # shorter continuation's log-probabilities at the longer one's first tokens.
    expected = [theirs.loglikelihood(ask("loglikelihood", pair))[0] for pair in pairs]
    np.testing.assert_allclose([total for total, _ in answers], [total for total, _ in expected], atol=1e-3)
    assert [flag for _, flag in answers] == [flag for _, flag in expected]
    assert ours.num_cut == num_cut_before + 2


def test_long_texts_roll_as_the_harness_rolls_them(both):
    ours, theirs = both
    texts = [("The owl clock is in the north hall. " * n,) for n in (1, 40, 150)]
    answers = ours.loglikelihood_rolling(ask("loglikelihood_rolling", *texts))
    np.testing.assert_allclose(answers, theirs.loglikelihood_rolling(ask("loglikelihood_rolling", *texts)), rtol=1e-5)


@pytest.mark.parametrize("in_chat", [False, True])
def test_our_own_questions_score_and_write_the_same(both, tmp_path, in_chat):
    museum_tasks.write(tmp_path, in_chat=in_chat, needs_space=False, seed=0)
    options = dict(num_fewshot=2, apply_chat_template=in_chat, fewshot_as_multiturn=in_chat, limit=12)
    if in_chat:
        options["system_instruction"] = "Be brief."
    assert compare(*both, tmp_path, museum_tasks.NAMES, gen_kwargs="max_gen_toks=24", **options) == 12 * 10


def letters(row, options):
    """A question whose choices are the letters before its options: one token each."""
    text = "\n".join(f"{letter}. {option}" for letter, option in options.items())
    return {"text": f"{row}\n{text}\nAnswer:", "choices": list(options)}


def medical(folder):
    """Name of a task -> its rows: `text`, `choices`, `gold`."""
    tasks = {}
    files = {
        "medqa": "medqa_medqa_usmle/medqa_4opt_val.jsonl",
        "medmcqa": "medqa_medmcqa/medmcqa_train_sample_first3000.jsonl",
        "careqa": "medqa_careqa/careqa_en_a.jsonl",
        "mmlu": "medqa_mmlu_medical/mmlu_college_medicine_val.jsonl",
    }
    for name, path in files.items():
        tasks[name], tasks[f"{name}_letters"] = [], []
        for line in (folder / path).read_text(encoding="utf-8").splitlines()[:NUM_ROWS]:
            row = json.loads(line)
            gold = list(row["options"]).index(row["correct_answer"])
            text = {"text": f"Question: {row['question']}\nAnswer:", "choices": list(row["options"].values())}
            tasks[name].append({**text, "gold": gold})
            tasks[f"{name}_letters"].append({**letters(row["question"], row["options"]), "gold": gold})
    lines = (folder / "medqa_pubmedqa/pqal_non_test.jsonl").read_text(encoding="utf-8").splitlines()[:NUM_ROWS]
    verdicts = ["yes", "no", "maybe"]
    tasks["pubmedqa"] = [
        {"text": f"{' '.join(row['CONTEXTS'])}\nQuestion: {row['QUESTION']}\nAnswer:", "choices": verdicts}
        | {"gold": verdicts.index(row["final_decision"])}
        for row in map(json.loads, lines)
    ]
    return tasks


def write_tasks(folder, tasks):
    for name, rows in tasks.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        task = dict(task=name, dataset_path="json", test_split="test", output_type="multiple_choice")
        task |= dict(dataset_kwargs={"data_files": {"test": str(folder / f"{name}.jsonl")}})
        task |= dict(doc_to_text="{{text}}", doc_to_target="{{gold}}", doc_to_choice="{{choices}}")
        task["metric_list"] = [
            {"metric": m, "aggregation": "mean", "higher_is_better": True} for m in ("acc", "acc_norm")
        ]
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))


def test_the_medical_files_score_the_same(both, shared_data, tmp_path):
    tasks = medical(shared_data)
    write_tasks(tmp_path, tasks)
    assert compare(*both, tmp_path, list(tasks)) == sum(len(row["choices"]) for rows in tasks.values() for row in rows)


@functools.cache
def smol():
    """SmolLM2-135M-Instruct, which `make models` writes, in both classes."""
    if not SMOL.is_dir():
        pytest.skip("no models/smollm2 here; make models writes it")
    init_from = f"hf:{SMOL}"
    tok = tokenizer.load(init_from)
    model = language_model.build(init_from, tok, model={}, compute={"dtype": "float32"}, rows_are_plain=False)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), ("data", "fsdp", "tensor"))
    params = language_model.params(init_from, model, mesh)
    peer = huggingface.HFLM(pretrained=str(SMOL), device="cpu", dtype="float32", batch_size=8, max_length=1_024)
    return flax(model, params, tok, 1_024), peer


@pytest.mark.parametrize("in_chat", [False, True])
def test_a_real_model_scores_and_writes_the_same(tmp_path, in_chat):
    museum_tasks.write(tmp_path, in_chat=in_chat, needs_space=False, seed=0)
    options = dict(apply_chat_template=in_chat, limit=4, gen_kwargs="max_gen_toks=16")
    assert compare(*smol(), tmp_path, museum_tasks.NAMES, **options) == 4 * 10


def test_a_real_model_scores_the_medical_files_the_same(shared_data, tmp_path):
    tasks = {name: rows[:2] for name, rows in medical(shared_data).items()}
    write_tasks(tmp_path, tasks)
    assert compare(*smol(), tmp_path, list(tasks)) == sum(
        len(row["choices"]) for rows in tasks.values() for row in rows
    )
