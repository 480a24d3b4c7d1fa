"""What all modalities share: the contract of an objective, steps, optimizers, layers, losses."""

# What gin files may name, by module; launch.run.registry reads it. Nothing is imported for it here.
CONFIGURABLE = {
    "attentive": ("Attentive",),
    "adapt": ("Full", "LinearProbe", "BitFit", "LoRA", "BottleneckAdapter", "PromptTuning", "IA3"),
    "combine": ("Sum", "Alternate", "Stages"),
    "schedule": ("Constant", "Linear", "Cosine", "Steps", "Rsqrt", "WSD"),
    "rope": ("LinearScaling", "Llama3Scaling", "YarnScaling"),
    "optim": ("AdamW", "Adafactor", "Lion", "SGD", "LARS", "Muon", "LayerDecay"),
}
