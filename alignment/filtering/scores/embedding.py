"""An embedding of a text and a small head on it: quality from 0 to 5, safety from 0 to 5, or any two levels.

    score = embedding.load("export/scorer")                            # a static embedding, in numpy
    score = embedding.load("export/scorer", embed_fn=my_flax_encoder)  # texts -> [N,D], such as a sentence encoder

The static embedding is model2vec's (the mean of a vector for each token), read from `model.safetensors` and
`tokenizer.json`. FineWeb-Edu (Penedo et al. 2024, arXiv:2406.17557) uses the objective `regression` and the pool
`mean`, Safety Pretraining (Maini et al. 2025, arXiv:2504.16980, who find classification better than regression)
`softmax` over 0 to 5 and `max`.

Dimensions: N texts, P pieces of texts, T tokens, D width, F of the hidden layer, V vocabulary, O outputs.
"""

import dataclasses
import hashlib
import json
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from alignment.errors import InputError
from alignment.filtering.scores import chunks, heads

EmbedFn = Callable[[Sequence[str]], np.ndarray]
BLOCK = 65_536  # characters of the longest string for the tokenizer, whose time grows faster than the length
GROUP = 1 << 20  # characters tokenised together


@dataclasses.dataclass(frozen=True)
class Static:
    """A vector for each token; a piece's embedding is their mean, scaled to length 1 where the model says so.

    Attributes:
        weights_V: factors of the tokens' vectors in the sum; None: all 1.
        unknown_id: the token that stands for unknown words, which the mean leaves out; None: the tokenizer has none.
        sha256: of the weights, to check that a head gets the embedding that it was trained on.
    """

    embeddings_VD: np.ndarray
    tokenizer: Any  # of `tokenizers`, which a worker without this scorer does not import
    weights_V: np.ndarray | None
    unknown_id: int | None
    normalize: bool
    folder: str
    sha256: str

    @property
    def width(self) -> int:
        return self.embeddings_VD.shape[1]

    def pieces(
        self, texts: Sequence[str], piece: int, *, first: bool = False
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Embeddings of texts in pieces.

        Args:
            piece: tokens of a piece; 0 leaves texts whole.
            first: only each text's first piece.

        Returns:
            Embeddings [P,D] float32, the text of each piece [P], and the character at which it begins [P]: 0 for a
            text's first piece, else that of its first known token.
        """
        vectors, owners, starts = [], [], []
        for start, stop in chunks.groups(texts, GROUP):
            for i, (ids, places) in enumerate(self._tokens(texts[start:stop]), start):
                size = piece or max(len(ids), 1)
                cuts = range(0, max(len(ids), 1), size)
                for cut in cuts[:1] if first else cuts:
                    vectors.append(self._mean(ids[cut : cut + size]))
                    owners.append(i)
                    starts.append(places[cut] if cut else 0)
        # A text without tokens has a piece, the zero vector: every text needs a score.
        stacked = np.stack(vectors) if vectors else np.zeros((0, self.width), np.float32)
        return stacked, np.array(owners, np.int64), np.array(starts, np.int64)

    def _tokens(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Known tokens of each text, and the character at which each begins; long texts are tokenised in blocks."""
        blocks: list[str] = []
        owners: list[int] = []
        for i, text in enumerate(texts):
            parts = chunks.split(text, BLOCK, BLOCK) if len(text) > BLOCK else [text]
            blocks += parts
            owners += [i] * len(parts)
        ids: list[list[int]] = [[] for _ in texts]
        places: list[list[int]] = [[] for _ in texts]
        begins = chunks.starts(blocks, np.array(owners, np.int64)).tolist()
        encoded = self.tokenizer.encode_batch(blocks, add_special_tokens=False)
        for owner, begin, encoding in zip(owners, begins, encoded, strict=True):
            ids[owner] += encoding.ids
            places[owner] += [begin + offset for offset, _ in encoding.offsets]
        return [self._known(*pair) for pair in zip(ids, places, strict=True)]

    def _known(self, ids: Sequence[int], places: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        ids_T, places_T = np.array(ids, np.int64), np.array(places, np.int64)
        is_known_T = (ids_T != self.unknown_id) & (ids_T < len(self.embeddings_VD))
        # The parts of one character (bytes, an emoji's) may go back a place; pieces must begin in rising order.
        return ids_T[is_known_T], np.maximum.accumulate(places_T[is_known_T])

    def _mean(self, ids: np.ndarray) -> np.ndarray:
        if not len(ids):
            return np.zeros(self.width, np.float32)
        vectors = self.embeddings_VD[ids].astype(np.float32)
        if self.weights_V is not None:
            vectors = vectors * self.weights_V[ids, None]
        mean_D = vectors.mean(axis=0)
        # The length of the zero vector is 0, and it stays as it is.
        length = float(np.linalg.norm(mean_D)) if self.normalize else 1.0
        return mean_D / length if length > 0 else mean_D


def check(folder: str | pathlib.Path) -> pathlib.Path:
    """The folder, if it has the files of a model2vec embedding; none is opened."""
    folder = pathlib.Path(folder)
    for name in ("model.safetensors", "tokenizer.json"):
        if not (folder / name).is_file():
            raise InputError(f"embedding {folder} has no {name}; give a model2vec folder")
    return folder


def static(folder: str | pathlib.Path) -> Static:
    """Read a model2vec folder: `model.safetensors`, `tokenizer.json` and, if there is one, `config.json`.

    Raises:
        InputError: a file is missing or damaged.
    """
    import safetensors
    import tokenizers
    from safetensors import numpy as reader

    folder = check(folder)
    try:
        content = (folder / "model.safetensors").read_bytes()
        tensors = reader.load(content)
        tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        config = json.loads((folder / "config.json").read_text()) if (folder / "config.json").is_file() else {}
        description = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        normalize, unknown = bool(config.get("normalize", False)), description["model"].get("unk_token")
    except (ValueError, KeyError, AttributeError, safetensors.SafetensorError) as e:
        raise InputError(f"embedding {folder} is damaged ({e!r}); fetch it again") from None
    except Exception as e:  # `tokenizers` raises a plain Exception for a file that it cannot read
        raise InputError(f"embedding {folder}: {e}; fetch it again") from None
    embeddings_VD = tensors.get("embeddings")
    if embeddings_VD is None or embeddings_VD.ndim != 2:
        raise InputError(f"embedding {folder} holds {sorted(tensors)}; a static embedding has a matrix `embeddings`")
    if "mapping" in tensors:  # several tokens share a vector
        embeddings_VD = embeddings_VD[tensors["mapping"]]
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return Static(
        embeddings_VD,
        tokenizer,
        tensors.get("weights"),
        tokenizer.token_to_id(unknown) if unknown else None,
        normalize,
        str(folder),
        hashlib.sha256(content).hexdigest(),
    )


def load(
    path: str | pathlib.Path, *, name: str = "", model: str | pathlib.Path = "", embed_fn: EmbedFn | None = None
) -> heads.Scorer:
    """A scorer that a run of `experiments/scorer.py` has exported.

    Args:
        name: of its scores; "" takes the exported name.
        model: folder of the static embedding; "" takes the folder that the head was trained with.
        embed_fn: texts to embeddings [N,D], instead of a static embedding; it gets pieces of as many words as the
            head's `piece` says (512 by default).

    Raises:
        InputError: a scorer or embedding that is missing or damaged, or another embedding than in training.
    """
    about, tensors = heads.load(path, "embedding")
    about = dataclasses.replace(about, name=name or about.name)
    if embed_fn is not None:
        return build(about, tensors, of_function(embed_fn, about.piece))
    own = static(model or about.features["model"])
    if about.features.get("sha256", own.sha256) != own.sha256:
        raise InputError(f"{path} was trained on another embedding than {own.folder}; name the right one as `model`")
    return build(about, tensors, lambda texts: own.pieces(texts, about.piece))


def of_function(embed_fn: EmbedFn, piece: int) -> heads.Outputs:
    """Any embedding in the form that `build` takes: (embeddings, text and first character of each piece)."""

    def pieces(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        parts, owners_P = chunks.of_texts(texts, piece)
        return np.asarray(embed_fn(parts), np.float32), owners_P, chunks.starts(parts, owners_P)

    return pieces


def build(about: heads.About, tensors: Mapping[str, np.ndarray], pieces_fn: heads.Outputs) -> heads.Scorer:
    """A scorer from weights: `kernel` and `bias`, with a hidden layer `hidden_kernel` and `hidden_bias` too."""
    hidden = tensors["hidden_kernel"].shape if "hidden_kernel" in tensors else None
    num, width = heads.num_outputs(about.objective, len(about.levels)), about.features["width"]
    wanted = {"kernel": (hidden[-1] if hidden else width, num), "bias": (num,)}
    if hidden:
        wanted |= {"hidden_kernel": (width, hidden[-1]), "hidden_bias": (hidden[-1],)}
    heads.check_shapes(about, tensors, wanted)

    def outputs(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        x_PD, owners_P, starts_P = pieces_fn(texts)
        if x_PD.shape[1:] != (width,):
            raise InputError(f"the embedding is {x_PD.shape[1:]} wide, and the head was trained on {width}")
        if hidden:
            x_PD = gelu(x_PD @ tensors["hidden_kernel"] + tensors["hidden_bias"])
        return x_PD @ tensors["kernel"] + tensors["bias"], owners_P, starts_P

    return heads.Scorer(about, tensors, outputs)


def batch_fn(
    inputs_ND: np.ndarray, labels_N: np.ndarray, weights_N: np.ndarray
) -> Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]]:
    """`(index, weight) -> batch` for a loader: `inputs` [N,D], `labels`, `weights`, `index`."""

    def make(index_N: np.ndarray, weight_N: np.ndarray) -> dict[str, np.ndarray]:
        weights = (weight_N * weights_N[index_N]).astype(np.float32)
        rest = {"labels": labels_N[index_N].astype(np.int32), "weights": weights, "index": index_N.astype(np.int32)}
        return {"inputs": inputs_ND[index_N], **rest}

    return make


def gelu(x: np.ndarray) -> np.ndarray:
    """GELU as in Flax: the approximation by tanh (Hendrycks & Gimpel 2016, arXiv:1606.08415)."""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
