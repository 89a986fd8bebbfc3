"""Text encoders of the BERT family: BERT, DistilBERT and MiniLM from safetensors, with their WordPiece tokenizer.

Devlin et al. 2019 (arXiv:1810.04805), Sanh et al. 2019 (arXiv:1910.01108), Wang et al. 2020 (arXiv:2002.10957). Layers
normalise after each sum, as the papers do. Weights are read as sentence-transformers and transformers write them.

    encoder = bert.load("models/minilm")
    vectors_ND = encoder.embed(["an aspirin a day", "one aspirin daily"])

Dimensions: B batch, T time, S positions attended to, D width, H heads, K head width, F feed-forward, V vocabulary,
N texts.
"""

import dataclasses
import functools
import hashlib
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

from alignment import errors, files
from alignment.errors import InputError
from alignment.models import tensors

FAMILIES = ("bert", "distilbert")
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_new": functools.partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
}
STEP = 32  # lengths are rounded up to multiples of this, so that few programs are compiled
TOKENS_PER_CALL = 4_096
PREFIXES = ("bert.", "distilbert.", "0.auto_model.", "model.")
# transformers' names of a layer's parts: (BERT, DistilBERT)
PARTS = {
    "query": ("attention.self.query", "attention.q_lin"),
    "key": ("attention.self.key", "attention.k_lin"),
    "value": ("attention.self.value", "attention.v_lin"),
    "out": ("attention.output.dense", "attention.out_lin"),
    "attention_norm": ("attention.output.LayerNorm", "sa_layer_norm"),
    "up": ("intermediate.dense", "ffn.lin1"),
    "down": ("output.dense", "ffn.lin2"),
    "mlp_norm": ("output.LayerNorm", "output_layer_norm"),
}
LAYERS = ("encoder.layer", "transformer.layer")
TABLES = {"words": "word_embeddings", "places": "position_embeddings", "types": "token_type_embeddings"}


class Bert(nn.Module):
    """Tokens in, hidden states out.

    Attributes:
        num_types: rows of the table of token types; 0: there is no table (DistilBERT).
        activation: a key of ACTIVATIONS.
    """

    vocab_size: int
    num_layers: int
    model_dim: int
    num_heads: int
    ffn_dim: int
    max_positions: int
    num_types: int = 2
    norm_eps: float = 1e-12
    activation: str = "gelu"
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        tokens_BT: jax.Array,
        mask_BT: jax.Array,
        types_BT: jax.Array | None = None,
        *,
        ends_with_first: bool = False,
    ) -> list[jax.Array]:
        """Hidden states [B,T,D] of the embedding and after every layer.

        Args:
            tokens_BT: ids, at positions 0, 1, ...
            mask_BT: True for tokens, False for what fills the row.
            types_BT: which of two texts a token is of, 0 or 1; None: all are of one.
            ends_with_first: the last state is that of the first token alone, [B,1,D]; for a head that reads no other.
        """
        T = tokens_BT.shape[1]
        hidden_BTD = self._table("words", self.vocab_size, "vocab")[tokens_BT]
        hidden_BTD += self._table("places", self.max_positions, None)[:T][None]
        if self.num_types:
            types_BT = jnp.zeros_like(tokens_BT) if types_BT is None else types_BT
            hidden_BTD += self._table("types", self.num_types, None)[types_BT]
        hidden_BTD = self._norm("norm")(hidden_BTD).astype(self.dtype)
        states = [hidden_BTD]
        for i in range(self.num_layers):
            read_BSD = hidden_BTD
            if ends_with_first and i == self.num_layers - 1:
                hidden_BTD = hidden_BTD[:, :1]  # nobody reads the other tokens of the last layer
            mixed_BTD = self._attention(f"layer_{i}", hidden_BTD, read_BSD, mask_BT)
            hidden_BTD = self._norm(f"layer_{i}_attention_norm")(hidden_BTD + mixed_BTD)
            up_BTF = self._dense(f"layer_{i}_up", hidden_BTD, self.ffn_dim, ("embed", "mlp"))
            wide_BTF = ACTIVATIONS[self.activation](up_BTF)
            narrow_BTD = self._dense(f"layer_{i}_down", wide_BTF, self.model_dim, ("mlp", "embed"))
            hidden_BTD = self._norm(f"layer_{i}_mlp_norm")(hidden_BTD + narrow_BTD)
            states.append(hidden_BTD)
        return states

    def _attention(self, name, x_BTD, read_BSD, mask_BS):
        B, T, D = x_BTD.shape
        parts = {"query": x_BTD, "key": read_BSD, "value": read_BSD}
        query_BTHK, key_BSHK, value_BSHK = (
            self._dense(f"{name}_{part}", x, D, ("embed", "heads")).reshape(B, -1, self.num_heads, D // self.num_heads)
            for part, x in parts.items()
        )
        logits_BHTS = jnp.einsum("BTHK,BSHK->BHTS", query_BTHK, key_BSHK, preferred_element_type=jnp.float32)
        # Finite, because under -inf a row without any token would be NaN.
        logits_BHTS = jnp.where(
            mask_BS[:, None, None], logits_BHTS * query_BTHK.shape[-1] ** -0.5, jnp.finfo(jnp.float32).min
        )
        weights_BHTS = jax.nn.softmax(logits_BHTS, axis=-1).astype(value_BSHK.dtype)
        mixed_BTD = jnp.einsum("BHTS,BSHK->BTHK", weights_BHTS, value_BSHK).reshape(B, T, D)
        return self._dense(f"{name}_out", mixed_BTD, D, ("heads", "embed"))

    def _table(self, name, rows, axis):
        init = nn.with_logical_partitioning(nn.initializers.normal(0.02), (axis, "embed"))
        return self.param(name, init, (rows, self.model_dim), jnp.float32)

    def _dense(self, name, x_BTD, width, axes):
        init = nn.with_logical_partitioning(nn.initializers.normal(0.02), axes)
        dense = nn.Dense(width, dtype=self.dtype, kernel_init=init, name=name)
        # As rows of one axis: a kernel's gradient sums over them, and over two axes XLA's CPU copies an operand,
        # transposed, into an order in which its product takes nearly twice as long.
        return dense(x_BTD.reshape(-1, x_BTD.shape[-1])).reshape(*x_BTD.shape[:-1], width)

    def _norm(self, name):
        return nn.LayerNorm(epsilon=self.norm_eps, dtype=self.dtype, name=name)


def batches(lengths: Sequence[int], max_len: int) -> Iterator[tuple[np.ndarray, tuple[int, int]]]:
    """Numbers of the texts of a call and the shape of its array, texts of like length together.

    An array has a power of two rows, so that a few texts do not cost a full batch and few programs are compiled.
    """
    times_N = np.array([min(-(-length // STEP) * STEP, max_len) for length in lengths], np.int64)
    for num_time in sorted(set(times_N.tolist())):
        alike = np.flatnonzero(times_N == num_time)
        num_rows = max(1, TOKENS_PER_CALL // num_time)
        for at in range(0, len(alike), num_rows):
            index = alike[at : at + num_rows]
            yield index, (min(num_rows, 1 << (len(index) - 1).bit_length()), num_time)


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A network with its weights and its tokenizer.

    Attributes:
        max_len: tokens of a text at most, with those before and after it; longer texts lose their end.
        digest: of the weights; what is stored of their output carries it.
    """

    model: Bert
    params: Any
    tokenizer: tokenizers.Tokenizer
    max_len: int
    name: str
    digest: str

    @property
    def width(self) -> int:
        return self.model.model_dim

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids with [CLS] before and [SEP] after, cut to `max_len`."""
        return [encoding.ids for encoding in self.tokenizer.encode_batch(list(texts))]

    def num_cut(self, texts: Sequence[str]) -> int:
        """How many of the texts are longer than `max_len`."""
        return sum(bool(encoding.overflowing) for encoding in self.tokenizer.encode_batch(list(texts)))

    def hidden(self, texts: Sequence[str], *, layer: int = -1, with_special: bool = True) -> list[np.ndarray]:
        """Hidden states of each text, [T,D] float32.

        Args:
            layer: 0 is the embedding, -1 the last layer.
            with_special: whether [CLS] and [SEP] are among the tokens.
        """
        out: list[np.ndarray] = [np.zeros((0, self.width), np.float32)] * len(texts)
        for index, states_BTD, mask_BT in self._batches(texts, layer):
            for i, states_TD, mask_T in zip(index, states_BTD, mask_BT):
                own_TD = states_TD[mask_T]
                out[i] = own_TD if with_special else own_TD[1:-1]
        return out

    def embed(self, texts: Sequence[str], *, layer: int = -1, normalize: bool = True) -> np.ndarray:
        """The mean of a text's hidden states, [N,D] float32, [CLS] and [SEP] among them; `normalize`: of length 1."""
        out_ND = np.zeros((len(texts), self.width), np.float32)
        for index, states_BTD, mask_BT in self._batches(texts, layer):
            total_BD = (states_BTD * mask_BT[..., None]).sum(axis=1)
            out_ND[index] = (total_BD / mask_BT.sum(axis=1, keepdims=True))[: len(index)]
        if normalize:
            out_ND /= np.maximum(np.linalg.norm(out_ND, axis=1, keepdims=True), 1e-12)
        return out_ND

    def _batches(self, texts, layer):
        """(indices of texts, their states, their masks), texts of like length together; rows that fill up are last."""
        encoded = self.encode(texts)
        for index, shape in batches([len(ids) for ids in encoded], self.max_len):
            tokens_BT, mask_BT = np.zeros(shape, np.int32), np.zeros(shape, bool)
            for row, i in enumerate(index):
                tokens_BT[row, : len(encoded[i])], mask_BT[row, : len(encoded[i])] = encoded[i], True
            mask_BT[len(index) :, 0] = True  # a mean over nothing would be NaN
            states_BTD = np.asarray(_states(self.model, self.params, tokens_BT, mask_BT, layer), np.float32)
            yield index, states_BTD, mask_BT


@functools.partial(jax.jit, static_argnames=("model", "layer"))
def _states(model: Bert, params: Any, tokens_BT: jax.Array, mask_BT: jax.Array, layer: int) -> jax.Array:
    states: Any = model.apply({"params": params}, tokens_BT, mask_BT)
    return states[layer]


def check(folder: str | pathlib.Path) -> pathlib.Path:
    """The folder, if it has the files of an encoder; no weights are read.

    Raises:
        InputError: a file is missing, or config.json is of another family.
    """
    folder = pathlib.Path(str(folder).removeprefix("hf:")).expanduser()
    if not (folder / "config.json").is_file():
        raise InputError(f"encoder {folder} has no config.json; give a folder with it, *.safetensors and a tokenizer")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        raise InputError(f"encoder {folder} has neither tokenizer.json nor vocab.txt")
    model_of(files.read_object(folder / "config.json"), str(folder))
    return folder


def load(folder: str | pathlib.Path, *, max_len: int | None = None, dtype: str = "float32") -> Encoder:
    """Read a Hugging Face folder.

    Args:
        folder: config.json, *.safetensors, and tokenizer.json or vocab.txt; `hf:` may stand before it.
        max_len: tokens of a text; None: what sentence_bert_config.json says, else as many as there are positions.

    Raises:
        InputError: a file is missing, another architecture, or tensors that do not fit it.
    """
    folder = check(folder)
    config = files.read_object(folder / "config.json")
    model = model_of(config, str(folder), dtype=dtype)
    sentence = folder / "sentence_bert_config.json"
    own = files.read_object(sentence).get("max_seq_length") if sentence.is_file() else None
    longest = min(max_len or own or model.max_positions, model.max_positions)
    stored = {plain(name): place for name, place in tensors.index(folder).items()}
    params = _params(model, stored, folder, is_distil=config["model_type"] == "distilbert")
    content = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        for block in files.blocks(path):
            content.update(block)
    return Encoder(model, params, _tokenizer(folder, longest), longest, folder.name, content.hexdigest()[:16])


def model_of(config: Mapping[str, Any], where: str, *, dtype: str = "float32") -> Bert:
    """The network of a config.json; what would be computed otherwise is refused."""
    family = errors.one_of(f"{where}: model_type", config.get("model_type"), FAMILIES)
    for key, wanted in (("position_embedding_type", "absolute"), ("is_decoder", False), ("quantization_config", None)):
        if config.get(key, wanted) != wanted:
            raise InputError(f"{where} has {key}={config[key]!r}, and only {wanted!r} is supported")
    names = dict(layers="num_hidden_layers", width="hidden_size", heads="num_attention_heads", ffn="intermediate_size")
    names |= dict(activation="hidden_act")
    if family == "distilbert":
        names = dict(layers="n_layers", width="dim", heads="n_heads", ffn="hidden_dim", activation="activation")
    try:
        return Bert(
            vocab_size=config["vocab_size"],
            num_layers=config[names["layers"]],
            model_dim=config[names["width"]],
            num_heads=config[names["heads"]],
            ffn_dim=config[names["ffn"]],
            max_positions=config["max_position_embeddings"],
            num_types=0 if family == "distilbert" else config.get("type_vocab_size", 2),
            norm_eps=1e-12 if family == "distilbert" else config.get("layer_norm_eps", 1e-12),
            activation=errors.one_of(f"{where}: activation", config.get(names["activation"], "gelu"), ACTIVATIONS),
            dtype=dtype,
        )
    except KeyError as e:
        raise InputError(f"{where}/config.json lacks {e.args[0]!r}, which a {family} model needs") from None


def _params(model: Bert, stored: Mapping[str, tensors.Stored], folder: pathlib.Path, *, is_distil: bool) -> Any:
    def read(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name not in stored:
            raise InputError(f"{folder} lacks {name}, which its config.json asks for; fetch it again")
        if stored[name].shape != shape:
            raise InputError(f"{folder}: {name} is {stored[name].shape}, and config.json says {shape}")
        return np.asarray(tensors.view(name, stored[name]), np.float32)

    def norm(name: str) -> dict[str, np.ndarray]:
        return {"scale": read(f"{name}.weight", (model.model_dim,)), "bias": read(f"{name}.bias", (model.model_dim,))}

    def dense(name: str, inputs: int, outputs: int) -> dict[str, np.ndarray]:
        return {"kernel": read(f"{name}.weight", (outputs, inputs)).T, "bias": read(f"{name}.bias", (outputs,))}

    D, F = model.model_dim, model.ffn_dim
    rows = {"words": model.vocab_size, "places": model.max_positions, "types": model.num_types}
    out: dict[str, Any] = {
        ours: read(f"embeddings.{TABLES[ours]}.weight", (num, D)) for ours, num in rows.items() if num
    }
    out["norm"] = norm("embeddings.LayerNorm")
    sizes = {"up": (D, F), "down": (F, D)}
    for i in range(model.num_layers):
        for part, names in PARTS.items():
            name = f"{LAYERS[is_distil]}.{i}.{names[is_distil]}"
            ours = f"layer_{i}_{part}"
            out[ours] = norm(name) if part.endswith("norm") else dense(name, *sizes.get(part, (D, D)))
    return jax.tree.map(jnp.asarray, out)


def plain(name: str) -> str:
    """A tensor's name without what a head's model puts before it; old checkpoints call a norm's parts gamma, beta."""
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name))


def _tokenizer(folder: pathlib.Path, max_len: int) -> tokenizers.Tokenizer:
    """The folder's tokenizer.json, or one made from vocab.txt; it cuts texts to `max_len` and fills nothing up."""
    try:
        if (folder / "tokenizer.json").is_file():
            tok = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        else:
            tok = _of_vocabulary(folder)
    except InputError:
        raise
    except Exception as e:  # the library raises bare Exception
        raise InputError(f"encoder {folder}: its tokenizer cannot be read: {e}") from None
    tok.no_padding()
    tok.enable_truncation(max_len)
    return tok


def _of_vocabulary(folder: pathlib.Path) -> tokenizers.Tokenizer:
    words = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    vocab = {word: i for i, word in enumerate(words)}
    settings = folder / "tokenizer_config.json"
    about = files.read_object(settings) if settings.is_file() else {}
    special = {kind: about.get(f"{kind}_token", f"[{kind.upper()}]") for kind in ("unk", "cls", "sep")}
    for kind, text in special.items():
        if text not in vocab:
            raise InputError(f"{folder}/vocab.txt lacks {text!r}, the tokenizer's {kind}_token")
    tok = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab, unk_token=special["unk"]))
    tok.normalizer = tokenizers.normalizers.BertNormalizer(
        handle_chinese_chars=about.get("tokenize_chinese_chars", True),
        strip_accents=about.get("strip_accents"),
        lowercase=about.get("do_lower_case", True),
    )
    tok.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tok.post_processor = tokenizers.processors.BertProcessing(
        (special["sep"], vocab[special["sep"]]), (special["cls"], vocab[special["cls"]])
    )
    return tok
