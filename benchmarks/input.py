"""Time the input pipeline alone: windows from ArrayRecord, span corruption as T5 does it, whole batches on the host.

    python -m benchmarks.input --workers=2

    python -m benchmarks.input --batch_size=16 --length=128 --latency=0.05 --step=0.08

The second form asks what slow storage costs: every record takes so much longer to read, one after the other within a
batch, and a step of the model so long; `lost` is the share of the time for which it waits for its batch. 0.08 s is the
demo's step. The last line is one JSON object; `raw_tokens_per_s` counts the tokens of the windows that are read (568
make 512 inputs and 114 targets). The corpus is a prepared directory, or the Python standard library, prepared for the
occasion.
"""

import json
import multiprocessing
import pathlib
import tempfile
import time

from absl import flags

from launch.run import cli
from launch.run.loader import batches, reading_threads
from paradigm.dataset import Dataset
from t5like.corrupt import SpanNoise
from t5like.data import TextData
from t5like.windows import META

DATA = flags.DEFINE_string("data", "stdlib", "A prepared directory or any source; see launch.prepare.")
TOKENIZER = flags.DEFINE_string("tokenizer", "sentencepiece:8192", "Its tokenizer, if it is not prepared.")
LENGTH = flags.DEFINE_integer("length", 512, "Encoder inputs.")
BATCH = flags.DEFINE_integer("batch_size", 128, "Examples a batch.")
WORKERS = flags.DEFINE_integer("workers", 0, "Data worker processes; 0 is a thread of this one.", lower_bound=0)
SECONDS = flags.DEFINE_float("seconds", 8.0, "How long to measure.")
LATENCY = flags.DEFINE_float("latency", 0.0, "Seconds that the reading of a record takes longer.", lower_bound=0.0)
THREADS = flags.DEFINE_integer("threads", None, "Reading at once; measured unless given.", lower_bound=1)
STEP = flags.DEFINE_float("step", None, "Seconds of a step of the model, which here sleeps.", lower_bound=0.0)
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
    dataset = Dataset(Late(prepared.source("train"), LATENCY.value), noise, BATCH.value)
    threads = THREADS.value or reading_threads(dataset)
    told = {"benchmark": "input", "latency": LATENCY.value, "threads": threads, "workers": WORKERS.value}
    with batches(dataset, workers=WORKERS.value, threads=threads) as stream:
        for _ in range(WARMUP):
            batch = next(stream)
        if STEP.value is not None:
            return {**told, "step": STEP.value, "batch_size": BATCH.value, "lost": lost(stream)}
        rates, begin = [], time.perf_counter()
        while time.perf_counter() - begin < SECONDS.value:
            count, start = 0, time.perf_counter()
            while (passed := time.perf_counter() - start) < 1.0:
                next(stream)
                count += 1
            rates.append(count * BATCH.value * raw_length / passed)
    return {
        **told,
        "objective": "span_corruption",
        "data": source,
        "inputs": batch["encoder_inputs"].shape[1],
        "targets": batch["targets"].shape[1],
        "window": raw_length,
        "batch_size": BATCH.value,
        "cores": multiprocessing.cpu_count(),
        "raw_tokens_per_s": round(sum(rates) / len(rates)),
        "fastest_second": round(max(rates)),
        "slowest_second": round(min(rates)),
    }


class Late:
    """A source each of whose records takes so many seconds longer to be read, one after the other."""

    def __init__(self, source, seconds):
        self.source, self.seconds, self.fingerprint = source, seconds, source.fingerprint

    def __len__(self):
        return len(self.source)

    def __getitem__(self, position):
        return self.__getitems__([position])[0]

    def __getitems__(self, positions):
        time.sleep(self.seconds * len(positions))
        return self.source.__getitems__(positions)


def lost(stream):
    """The share of SECONDS of steps for which they wait for their batches."""
    begin, waited = time.perf_counter(), 0.0
    while time.perf_counter() - begin < SECONDS.value:
        start = time.perf_counter()
        next(stream)
        waited += time.perf_counter() - start
        time.sleep(STEP.value)
    return round(waited / (time.perf_counter() - begin), 5)


if __name__ == "__main__":
    cli.run(main)
