"""Time the input pipeline alone: windows from ArrayRecord, span corruption as T5 does it, whole batches on the host.

    python -m benchmarks.input --workers=2

The last line is one JSON object; `raw_tokens_per_s` counts the tokens of the windows that are read (568 make 512 inputs
and 114 targets). The corpus is a prepared directory, or the Python standard library, prepared for the occasion.
"""

import json
import multiprocessing
import pathlib
import tempfile
import time

from absl import flags

from launch.run import cli
from launch.run.loader import batches
from paradigm.dataset import Dataset
from t5like.corrupt import SpanNoise
from t5like.data import META, TextData

DATA = flags.DEFINE_string("data", "stdlib", "A prepared directory or any source; see launch.prepare.")
TOKENIZER = flags.DEFINE_string("tokenizer", "sentencepiece:8192", "Its tokenizer, if it is not prepared.")
LENGTH = flags.DEFINE_integer("length", 512, "Encoder inputs.")
BATCH = flags.DEFINE_integer("batch_size", 128, "Examples a batch.")
WORKERS = flags.DEFINE_integer("workers", 0, "Data worker processes; 0 is a thread of this one.", lower_bound=0)
SECONDS = flags.DEFINE_float("seconds", 8.0, "How long to measure.")
WARMUP = 20  # batches: workers start, files open, buffers fill


def main(argv):
    del argv
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(folder)))


def measure(folder):
    raw_length = SpanNoise(None, LENGTH.value).raw_length
    source = DATA.value
    recipe = TextData(source) if (pathlib.Path(source) / META).exists() else TextData(source, TOKENIZER.value)
    prepared = recipe.build(pathlib.Path(folder) / "data", raw_length, progress=False)
    noise = SpanNoise(prepared.tokenizer.vocabulary, LENGTH.value)
    dataset = Dataset(prepared.source("train"), noise, BATCH.value)
    with batches(dataset, workers=WORKERS.value) as stream:
        for _ in range(WARMUP):
            batch = next(stream)
        rates, begin = [], time.perf_counter()
        while time.perf_counter() - begin < SECONDS.value:
            count, start = 0, time.perf_counter()
            while (passed := time.perf_counter() - start) < 1.0:
                next(stream)
                count += 1
            rates.append(count * BATCH.value * raw_length / passed)
    return {
        "benchmark": "input",
        "objective": "span_corruption",
        "data": source,
        "inputs": batch["encoder_inputs"].shape[1],
        "targets": batch["targets"].shape[1],
        "window": raw_length,
        "batch_size": BATCH.value,
        "workers": WORKERS.value,
        "cores": multiprocessing.cpu_count(),
        "raw_tokens_per_s": round(sum(rates) / len(rates)),
        "fastest_second": round(max(rates)),
        "slowest_second": round(min(rates)),
    }


if __name__ == "__main__":
    cli.run(main)
