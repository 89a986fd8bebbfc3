"""TRL's DPOTrainer, its own training loop, one optimiser step per command (see channel.py).

The pairs reach TRL as text over a vocabulary of words, so that TRL's own tokenising, collating and training code runs
and still sees exactly the token ids given.  Variants: "" a reference model beside the policy, as TRL does by default;
"precomputed" with TRL's precompute_ref_log_probs; "checkpointing" with TRL's default of gradient checkpointing, which
trades speed for memory and which the others switch off; "adapter" a peft adapter that starts as the file of the
benchmark says, the reference precomputed.
"""

import os

from channel import Channel, arguments, best_gflops

args = arguments()
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", TOKENIZERS_PARALLELISM="false")

import json  # noqa: E402
import tempfile  # noqa: E402

import datasets  # noqa: E402
import dpo_task  # noqa: E402
import safetensors.torch  # noqa: E402
import tokenizers  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
import trl  # noqa: E402


def peak_gflops(size: int = 3072) -> float:
    left, right = torch.randn(size, size), torch.randn(size, size)
    out = torch.empty(size, size)
    return best_gflops(lambda: torch.mm(left, right, out=out), size)


def word(token_id: int) -> str:
    # The brackets keep the name of a special token from being found inside another word.
    return f"<{token_id}>"


def word_tokenizer(vocab_size: int, eos_id: int):
    """Word `<17>` is token 17: text and ids are the same thing."""
    vocab = {word(i): i for i in range(vocab_size)}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token=word(1)))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=word(eos_id), pad_token=word(0))


def words(ids) -> str:
    return " ".join(word(i) for i in ids)


class Recorder(trl.DPOTrainer):
    """Keeps the loss of each step; everything else is TRL's."""

    last_loss = None

    def compute_loss(self, *positional, **named):
        loss = super().compute_loss(*positional, **named)
        self.last_loss = loss.detach()
        return loss


class Drive(transformers.TrainerCallback):
    """Lets TRL's loop run from one command to the next."""

    def __init__(self, channel: Channel):
        self.channel, self.trainer = channel, None

    def on_train_begin(self, arguments, state, control, **kwargs):
        control.should_training_stop = not self.channel.next_step()

    def on_step_end(self, arguments, state, control, **kwargs):
        self.channel.end_step(self.trainer.last_loss.item())
        control.should_training_stop = not self.channel.next_step()


def adapter_config():
    """The settings of the adapter's file, as `peft_config` of a fresh adapter."""
    import peft

    c = json.loads((args.weights / dpo_task.ADAPTER / "adapter_config.json").read_text())
    return peft.LoraConfig(
        r=c["r"], lora_alpha=c["lora_alpha"], target_modules=c["target_modules"], task_type="CAUSAL_LM"
    )


def start_adapter(model) -> None:
    """Put the file's numbers into a fresh adapter, so that all contestants start alike."""
    stored = safetensors.torch.load_file(args.weights / dpo_task.ADAPTER / "adapter_model.safetensors")
    own = {name.replace(".default", ""): value for name, value in model.named_parameters() if ".lora_" in name}
    assert own.keys() == stored.keys(), f"{own.keys() ^ stored.keys()}"
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(stored[name])


def main() -> None:
    channel = Channel(peak_gflops)
    torch.set_num_threads(args.threads)
    config = json.loads((args.weights / "config.json").read_text())
    ids = dpo_task.read(args.ids)
    pairs = datasets.Dataset.from_dict(
        {
            "prompt": [words(row) + " " for row in ids["prompts"]],
            "chosen": [words(row) for row in ids["chosen"]],
            "rejected": [words(row) for row in ids["rejected"]],
        }
    )
    settings = trl.DPOConfig(
        output_dir=tempfile.mkdtemp(prefix="trl_step_"),
        use_cpu=True,
        bf16=False,
        model_init_kwargs={"dtype": "float32"},
        beta=args.beta,
        precompute_ref_log_probs=args.variant in ("precomputed", "adapter"),
        gradient_checkpointing=args.variant == "checkpointing",
        per_device_train_batch_size=len(pairs),
        max_steps=1_000_000,
        learning_rate=args.lr,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        adam_beta1=0.9,
        adam_beta2=0.999,
        adam_epsilon=1e-8,
        max_grad_norm=0.0,  # no clipping
        max_length=None,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    drive = Drive(channel)
    drive.trainer = trainer = Recorder(
        model=str(args.weights),
        args=settings,
        train_dataset=pairs,
        processing_class=word_tokenizer(config["vocab_size"], config["eos_token_id"]),
        callbacks=[drive],
        peft_config=adapter_config() if args.variant == "adapter" else None,
    )
    if args.variant == "adapter":
        start_adapter(trainer.model)
    for name, column in (("prompts", "prompt_ids"), ("chosen", "chosen_ids"), ("rejected", "rejected_ids")):
        given = [one.tolist() for one in ids[name]]
        assert trainer.train_dataset[column][:] == given, f"TRL's {column} are not the ids given"
    channel.send("ready", versions={m.__name__: m.__version__ for m in (trl, transformers, torch)})
    trainer.train()


if __name__ == "__main__":
    main()
