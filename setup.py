"""Installing Plumbline: the core runs on a CPU laptop; everything heavier is an extra."""

import setuptools

CORE = [
    "absl-py>=2.1",
    "array_record>=0.7; platform_system != 'Windows'",
    "flax>=0.12",
    "grain>=0.2.12",
    "importlib_resources>=6.4",
    "jax>=0.10,<0.13",
    "jinja2>=3.1",
    "matplotlib>=3.9",
    "ml-collections>=1.1",
    "numpy>=2.0",
    "optax>=0.2.5",
    "orbax-checkpoint>=0.11.25",
    "orjson>=3.10",
    "pillow>=11.0",
    "py3langid>=0.3",
    "pyyaml>=6.0",
    "safetensors>=0.5",
    "scikit-image>=0.25",
    "scikit-learn>=1.6",
    "scipy>=1.14",
    "sentencepiece>=0.2",
    "tensorboardX>=2.6.2",
    "tensorflow-datasets==4.9.10",
    "threadpoolctl>=3.5",
    "tokenizers>=0.21",
    "xxhash>=3.5",
    "zstandard>=0.23",
]

EXTRAS = {
    "serve": ["prometheus-client>=0.22", "pydantic>=2.10", "starlette>=0.49", "uvicorn>=0.38"],
    "test": [
        "build>=1.2",
        "gguf>=0.17",
        "hypothesis>=6.100",
        "httpx>=0.28",
        "jsonschema>=4.20",
        "mypy>=2.4",
        "pyarrow>=18",
        "pytest>=8.2",
        "pytest-randomly>=4.0",
        "pytest-xdist>=3.6",
        "ray>=2.57",
        "ruff>=0.12",
        "slipcover>=1.1",
        "types-PyYAML",
    ],
    "parity": [
        "accelerate>=1.4",
        "captum>=0.9",
        "datasets>=4.7",
        "datatrove[io,processing]>=0.10",
        "fasttext-numpy2-wheel>=0.9.2",
        "opencv-python-headless>=4.11",  # with ttach, what grad-cam imports; it is installed apart, see the Makefile
        "openai>=2.0",
        "peft>=0.17",
        "schemathesis>=4.0",
        "spacy>=3.8",  # datatrove splits English into words with it
        "torch==2.13.0",
        "transformers>=5.0",
        "trl>=1.0",
        "ttach>=0.0.3",
    ],
    "docs": ["mkdocs>=1.6", "mkdocs-material>=9.6", "mkdocstrings[python]>=1.0"],
    "data": ["pyarrow>=18"],
    "ray": ["ray>=2.57"],
    "datatrove": ["datatrove>=0.10"],
    "eval": ["lm_eval>=0.4.13", "rouge-score>=0.1.2", "sacrebleu>=2.5"],
    "gguf": ["gguf>=0.17"],
    "hub": ["huggingface_hub>=1.0"],
    "cuda": ["jax[cuda12]"],
    "tpu": ["jax[tpu]"],
    "plan": ["libtpu>=0.0.40"],
    "wandb": ["wandb>=0.19"],
    "trackio": ["trackio>=0.4"],
}
EXTRAS["test"] += EXTRAS["serve"] + EXTRAS["eval"]
EXTRAS["all"] = sorted(
    {
        line
        for name in ("test", "serve", "eval", "data", "ray", "gguf", "hub", "wandb", "trackio")
        for line in EXTRAS[name]
    }
)

setuptools.setup(
    name="plumbline",
    version="0.1.0",
    description="Alignment research in JAX: preference tuning, data filtering, guided decoding, safety, explanation",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11,<3.13",
    packages=setuptools.find_packages(
        include=["alignment", "alignment.*", "data", "data.*", "experiments", "experiments.*"]
    ),
    package_data={
        "alignment": ["filtering/*/*.yaml"],
        "data": ["toys/*.yaml"],
        "experiments": ["launch/usage.txt", "report/page.css", "serving/*.html"],
    },
    # For releases of lm-evaluation-harness that look for plug-ins; 0.4.13 does not, so nothing has tested it yet.
    entry_points={"lm_eval.models": ["flax = experiments.decoding.harness_models:Flax"]},
    install_requires=CORE,
    extras_require=EXTRAS,
)
