"""What is known of measures by their names: in what unit they are, and which way is better."""

# How the last part of a metric's name ends -> its unit, and which is better; as in docs/metrics.md.
_HIGHER = (
    "accuracy knn linear linear_10pct linear_1pct attentive finetune mean_iou infill_exact minimal_pairs exact_match "
    "macro_f1 micro_f1 entity_f1 entity_precision entity_recall entity_macro_f1 answer_f1 rouge1 rouge2 rougeL choice "
    "choice_by_length image_to_text text_to_image zero_shot two_pictures caption_accuracy bleu4 rouge_l pair_accuracy "
    "position_accuracy detection_accuracy detection_precision detection_recall contrast_accuracy"
)
UNITS = (
    ("bits_per_byte", "bits", "lower"),
    ("nll", "nats a target", "lower"),
    ("caption_nll", "nats a token", "lower"),
    ("loss", "nats, or the objective's own", "lower"),
    *((end, "0 to 1", "higher") for end in _HIGHER.split()),
    *((end, "-1 to 1", "higher") for end in ("matthews", "pearson", "spearman")),
    *((end, "0 to 100", "higher") for end in ("bleu", "chrf")),
    ("cider", "0 to 10", "higher"),
)


def unit_of(metric):
    """(unit, 'lower' or 'higher') of a metric of a row, ("", "") of one that is not known."""
    tail = metric.split("/")[-1].split("@")[0]
    return next(((unit, better) for end, unit, better in UNITS if tail == end), ("", ""))
