"""Text: encoders and decoders, their objectives, data and decoding."""

# What gin files may name, by module; launch.run.registry reads it. Nothing is imported for it here.
CONFIGURABLE = {
    "data": ("TextData", "TextMixture"),
    "records": ("TextRecords",),
    "models": ("t5", "gpt", "bert"),
    "bart": ("bart",),
    "baselines": ("UnigramBaseline", "BigramBaseline"),
    "tokenizers": ("clip_tokenizer", "siglip_tokenizer"),
    "likelihood": ("MinimalPairs", "PseudoPerplexity"),
    "probes": ("TextProbes",),
    "decode": ("InfillSamples", "GenerateSamples"),
    "tasks.evaluators": ("ClassificationScores", "TaggingScores", "AnswerScores"),
    "tasks.written": ("TextScores",),
    "tasks.choice": ("MultipleChoice",),
}
