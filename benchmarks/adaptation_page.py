"""docs/results/adaptation.md and its picture, of the runs of benchmarks.adaptation that are there."""

import statistics

from benchmarks.adaptation_cells import (
    CELLS,
    DECODER,
    ENCODER,
    INTENTS,
    METHODS,
    MODELS,
    PICTURES,
    REQUESTS,
    SHARES,
    TUNED,
)  # fmt: skip
from benchmarks.compare import cell, save, table
from benchmarks.machine import processor

LINE = """
    python -m benchmarks.adaptation --bases=DIR --workdir=DIR --text=DIR --clinc=DIR --wnut=DIR --snips=DIR \\
        --parallel=tatoeba_en_sv.tsv --summaries=scitldr.zip --photos=eurosat.zip
"""


def write(out, work, rates, found):
    """Writes both.

    Args:
        out: the folder. work: of benchmarks.adaptation. rates: {(method, model): rate}.
        found: {(task, model, method, share, seed): a Run, or None}.
    """
    out.mkdir(parents=True, exist_ok=True)
    runs = {method: found.get((INTENTS, ENCODER, method, TUNED, 0)) for method in METHODS if method.file}
    forgets = {method: work.forgotten(run, ENCODER, method) for method, run in runs.items() if run is not None}
    if any(run is not None for key, run in found.items() if key[:2] == (INTENTS, ENCODER)):
        picture(found, out / "adaptation.png")
    save(out / "adaptation.md", report(work, rates, found, forgets))


def scores(found, task, model, method, share, metric):
    """The metric of every seed that has it."""
    chosen = [run for key, run in found.items() if key[:4] == (task, model, method, share) and run is not None]
    return [number for run in chosen if (number := run.last(f"valid/{metric}")) is not None]


def report(work, rates, found, forgets):
    """The page, as markdown."""
    lines = [
        "# What an adaptation keeps of a pre-trained model, and what it costs",
        "",
        "Small models pre-trained on text or on photographs, adapted by one method after the other for as many steps.",
        "From scratch is the same model, drawn. A row's rate is the best of two or three on a validation split with",
        "a tenth of the labels: of CLINC150 on that model of text, of EuroSAT on the first of pictures. Scores",
        "are of the test splits (of CLINC150's a fixed sample of 1,280), in percent but for BLEU and chrF:",
        "the mean and the standard deviation where a part has several seeds.",
        "The models of text have no biases: for BitFit they are given some, 0 at first, which changes nothing.",
        LINE,
        f"Hardware: {processor()}, 2 cores, float32. Bases may have been trained elsewhere.",
        "",
        "## What is adapted",
        "",
        *bases(work),
    ]
    for part, title, what in SECTIONS:
        there = {seed for (*cell, _, share, seed), run in found.items() if run and (*cell, share) in CELLS[part]}
        if there:
            count = "1 seed." if len(there) == 1 else f"{len(there)} seeds; what has no spread is of one."
            lines += [f"## {title}", "", *what, count, ""]
            if part == "pictures":  # of four models each: three tables rather than one of twelve columns
                for share in SHARES:
                    columns = [column for column in CELLS[part] if column[2] == share]
                    lines += [f"### {title}: {percent(share)} of the labels", ""]
                    lines += section(part, columns, work, rates, found, forgets)
            else:
                lines += section(part, CELLS[part], work, rates, found, forgets)
            lines += ["![accuracy by labels seen](adaptation.png)", ""] if part == "labels" else []
    return "\n".join(lines)


SECTIONS = (
    ("labels", "Intents of requests, by labels seen", [
        "CLINC150, 150 classes without those out of scope: accuracy with 1, 10 and 100 of 100 labels a class, on the",
        "encoder. Memory is what a device holds at most in a step, as compiled; a step's time is the median, on a",
        "machine that others may have used too. Forgotten is by how much the loss of pre-training on its held-out text",
        "has grown, with the model as adapted to 10 % of the labels.",
    ]),
    ("models", "Three architectures", [
        "CLINC150 with 10 % of the labels: a mean over tokens, the last token, a mean over the encoder's.",
    ]),
    ("entities", "Named entities", ["Entity F1 of WNUT-17, on the encoder."]),
    ("requests", "Seven intents, from few labels or from a prompt", [
        "SNIPS on the decoder, with 1 % of the labels; and in context: nothing is trained, as many requests of five",
        "with their intents as the decoder's window holds stand before the one that is asked, and the intent that it",
        "finds the likeliest counts.",
    ]),
    ("written", "Translation and summaries", [
        "English to Swedish (Tatoeba, held out by English sentence, all their translations as references) and",
        "abstracts to a sentence (SciTLDR), written by the encoder-decoder, the most probable token after the other.",
    ]),
    ("pictures", "Land from above", [
        "EuroSAT: accuracy with 1, 10 and 100 % of 800 labels a class, on vision transformers pre-trained on its",
        "training pictures, without labels but for the supervised one, which has seen all of them. What is trained,",
        "memory and a step's time, as above, are the first one's, and the same whatever the share.",
    ]),
)  # fmt: skip


COSTED = {"labels": TUNED, "pictures": 1.0}  # with which share of the labels a step's cost is taken
RATED = ("labels", "written", "pictures")  # the parts whose columns have one rate


def section(part, columns, work, rates, found, forgets):
    """The table of a part, or of those of its columns."""
    rows = []
    costed = next((share for _, _, share in columns if share == COSTED.get(part)), None)
    for method in METHODS:
        row = [method.name]
        for task, model, share in columns:
            row += [cell(scores(found, task, model, method, share, m), unit) for _, m, unit in task.metrics]
        if costed:
            task, model, _ = columns[0]
            row += costs(found.get((task, model, method, costed, 0)))
        if part == "labels":
            row += ["" if forgets.get(method) is None else f"{100 * forgets[method]:+.1f} %"]
        if part in RATED:
            rate = next((rates[method, model] for _, model, _ in columns if (method, model) in rates), None)
            row.append(f"{rate:g}" if rate is not None and any(row[1:]) else "")
        rows.append(row)
    if part == "requests" and (shown := work.in_context(REQUESTS, DECODER)):
        how = f"in context, {shown['choice_shots']:.1f} examples (chance {100 * shown['choice_chance']:.1f})"
        rows.append([how, f"{100 * shown['choice']:.1f}", *[""] * (len(columns) - 1)])
    names = [f"{task_title(part, *c)} {name}".strip() for c in columns for name, _, _ in c[0].metrics]
    names += ["trained", "memory", "step"] if costed else []
    names += ["forgotten"] if part == "labels" else []
    names += ["rate"] if part in RATED else []
    return table(["", *names], rows)


def percent(share):
    return f"{100 * share:g} %"


def task_title(part, task, model, share):
    if part == "labels":
        return f"{percent(share)} of labels"
    return model.name if part in ("models", "pictures") else task.name


def costs(run):
    """Cells: the share that is trained, memory and time of a step."""
    if run is None:
        return [""] * 3
    share, memory, step = run.trained_percent, run.peak_memory, run.step_seconds
    return ["" if x is None else text(x) for x, text in (
        (share, lambda x: f"{x:.3g} %"), (memory, lambda x: f"{x:.0f} MiB"), (step, lambda x: f"{1000 * x:.0f} ms"),
    )]  # fmt: skip


def bases(work):
    """A table of the pre-trained models: how large they are, what they have read and what they reached."""
    from launch.results import runs

    rows = []
    for model in (m for m in (*MODELS, *PICTURES) if work.base(m) is not None):
        run = runs.read(work.base(model))
        size = run.parameters.get("all")
        loss = next((name for name in ("valid/bits_per_byte", "valid/loss") if run.last(name) is not None), None)
        held_out = "" if loss is None else f"{run.last(loss):.3g} {loss.removeprefix('valid/').replace('_', ' ')}"
        rows.append(
            [model.name, f"`{model.base}`", "" if size is None else f"{size / 1e6:.2f} M", read(run, model), held_out]
        )
    return table(["", "pre-trained by", "parameters", "has read", "held-out"], rows)


def read(run, model):
    """How much text, or how many pictures, a base was trained on, with repetitions: '98.3 M tokens'."""
    examples = run.step * int(run.setting("batch_size"))
    if model in PICTURES:
        return f"{examples / 1e3:,.0f} k pictures"
    return f"{examples * int(run.settings['TextData.window']) / 1e6:.1f} M tokens"


def picture(found, path):
    """Accuracy by the share of labels, a line a method."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for i, method in enumerate(METHODS):
        rows = {share: scores(found, INTENTS, ENCODER, method, share, "accuracy") for share in SHARES}
        rows = {share: 100 * statistics.mean(row) for share, row in rows.items() if row}
        style = {"color": "black", "linestyle": "--"} if not method.file else {"color": f"C{i}"}
        axis.plot(rows.keys(), rows.values(), marker="o", label=method.name, **style)
    axis.set(xscale="log", xlabel="share of the labels", ylabel="accuracy (%)", title="CLINC150, encoder")
    axis.set_xticks(SHARES, [f"{100 * share:g} %" for share in SHARES])
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)
