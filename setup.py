"""Install Paradigm: `pip install -e .`, or `make venv` for a virtual environment of its own."""

from setuptools import setup

PACKAGES = [
    "gin_configs",
    "launch",
    "launch.aot",
    "launch.clusters",
    "launch.results",
    "launch.run",
    "launch.storage",
    "multimodal",
    "multimodal.hf",
    "multimodal.objectives",
    "paradigm",
    "paradigm.adapt",
    "paradigm.hf",
    "t5like",
    "t5like.decode",
    "t5like.hf",
    "t5like.models",
    "t5like.objectives",
    "t5like.tasks",
    "t5like.tokenizers",
    "vision",
    "vision.hf",
    "vision.objectives",
]

# `tfds:NAME`, from ArrayRecord or TFRecord files; neither needs TensorFlow. tfds imports importlib_resources and has
# relied on etils[epath] to bring it, which newer releases of etils do not.
TFDS = ["importlib_resources>=6,<8", "tensorflow-datasets>=4.9.8,<5"]
TASKS = ["rouge-score>=0.1.2,<0.2", "sacrebleu>=2.4,<3"]
GCS = ["gcsfs>=2026.1,<2027"]

setup(
    name="paradigm-pretraining",
    version="0.1.0",
    description="Every way of pre-training a foundation model, as a short pure function under one contract, in JAX.",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=PACKAGES,
    package_data={"gin_configs": ["**/*.gin"]},
    install_requires=[
        "absl-py>=2.1,<3",
        "array_record>=0.8,<0.9",
        "chex>=0.1.90,<0.2",
        "etils>=1.12,<2",
        "flax>=0.12,<0.13",
        "gin-config>=0.5,<0.6",
        "grain>=0.2.14,<0.3",
        "jax>=0.10.2,<0.13",
        "matplotlib>=3.9,<4",
        "numpy>=2.0,<3",
        "optax>=0.2.6,<0.3",
        "orbax-checkpoint>=0.12,<0.13",
        "pillow>=11,<14",
        "scikit-learn>=1.5,<2",
        "sentencepiece>=0.2,<0.3",
        "tokenizers>=0.21,<0.24",
        "tensorboardX>=2.6.2,<3",
        "tqdm>=4.66,<5",
    ],
    extras_require={
        "tpu": ["jax[tpu]>=0.10.2,<0.13"],
        "cuda": ["jax[cuda12]>=0.10.2,<0.13"],
        "data": TFDS,
        # --workdir=gs://BUCKET/RUN
        "gcs": GCS,
        # launch.prepare --engine=beam; [gcp] has the runner of Dataflow.
        "beam": ["apache-beam[gcp]>=2.61,<3"],
        "weights": ["safetensors>=0.5,<1"],
        # BLEU, chrF and ROUGE of texts that a task writes.
        "tasks": TASKS,
        # The TPU compiler without a TPU, for launch.compile.
        "aot": ["jax[tpu]>=0.10.2,<0.13"],
        "test": [
            "ipykernel>=6.29,<8",
            "nbclient>=0.10,<1",
            "nbformat>=5.10,<6",
            "pytest>=8,<10",
            "pytest-xdist>=3.8,<4",
            "ruff>=0.12,<1",
            "safetensors>=0.5,<1",
            *GCS,
            *TFDS,
            *TASKS,
            "seqeval>=1.2.2,<2",
        ],
    },
)
