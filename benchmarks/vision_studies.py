"""What benchmarks.vision asks beside which objective is worth what: the same run files with other settings."""

import dataclasses

MAIN = ("supervised", "mae", "beit", "simclr", "moco_v3", "dino", "ibot", "i_jepa")  # of several seeds
UNIT = "simclr"  # whose FLOPs the study at equal FLOPs takes
FLOPS = "_flops"


@dataclasses.dataclass(frozen=True)
class Variant:
    """A run of runs/small with settings of its own. reads: the variant whose run it begins with (Init.path)."""

    run: str
    bindings: tuple = ()
    reads: str = ""


@dataclasses.dataclass(frozen=True)
class Study:
    """A table. rows: {first cell: variant}. finetune: whether these are fine-tuned too."""

    title: str
    text: tuple
    first: str
    rows: dict
    finetune: bool = False


RESNET = ("resnet.depth = 'tiny'", "resnet.image_size = %size", "resnet.channels = %channels")
BEGIN = ("Experiment.init = (@Init(),)", "Init.path = 'workdirs/mae'", "Init.strict = False")
DVAE = (
    "BEiT.tokenizer = @DVAE()", "DVAE.encoder = @tokenizer/vit()", "DVAE.augment = @no_views()", "DVAE.codes = 256",
    "DVAE.code_width = 32", "DVAE.decoder_width = 96", "DVAE.decoder_layers = 1", "DVAE.decoder_heads = 3",
    "DVAE.distribution = 'l2'",
)  # fmt: skip
CLASSES = {"supervised": "Classify", "simclr": "SimCLR", "barlow_twins": "BarlowTwins",
           "moco_v2": "MoCoV2"}  # fmt: skip

VARIANTS = {
    "beit": Variant("beit", reads="vq"),
    **{f"mae_{n}": Variant("mae", (f"MAE.mask_ratio = {n / 100}",)) for n in (25, 50, 90)},
    "mae_then_supervised": Variant("supervised", BEGIN, reads="mae"),
    "vq_32": Variant("vq", ("VQ.codes = 32",)),
    "beit_vq_32": Variant("beit", ("VQ.codes = 32",), reads="vq_32"),
    "beit_dvae": Variant("beit", DVAE, reads="dvae"),
    **{f"moco_v2_{n}": Variant("moco_v2", (f"MoCoV2.queue = {n}",)) for n in (256, 1024)},
    **{f"{run}_resnet": Variant(run, (*RESNET, f"{name}.encoder = @resnet()")) for run, name in CLASSES.items()},
}

STUDIES = (
    Study(
        "At equal model FLOPs",
        (f"As many steps as {UNIT}'s run of 320 costs; compute is of the run, a tokenizer's own training left out.",),
        "objective",
        {run: run if run == UNIT else run + FLOPS for run in MAIN},
    ),
    Study(
        "How much to hide: mae",
        ("A share of 25 patches that the encoder does not see, and that is to be found.",),
        "hidden",
        {"25 %": "mae_25", "50 %": "mae_50", "75 %": "mae", "90 %": "mae_90"},
        finetune=True,
    ),
    Study(
        "Pre-training before supervised training",
        (
            "Probes of an encoder trained by labels: alone, for twice as long, or begun with MAE's, whose own compute",
            "is not in the column.",
        ),
        "run",
        {
            "320 supervised steps": "supervised",
            "641 supervised steps": f"supervised{FLOPS}",
            "320 of mae, then 320 supervised": "mae_then_supervised",
        },
    ),
    Study(
        "One tokenizer against another: beit",
        ("Whose ids are to be found; each tokenizer saw 40,960 pictures itself.",),
        "tokenizer",
        {"VQ-VAE, 256 codes": "beit", "VQ-VAE, 32 codes": "beit_vq_32", "dVAE, 256 codes": "beit_dvae"},
    ),
    Study(
        "How many keys to remember: moco_v2",
        ("The length of the queue, of batches of 128.",),
        "queue",
        {"256": "moco_v2_256", "1,024": "moco_v2_1024", "5,120": "moco_v2"},
    ),
    Study(
        "A ResNet in place of the ViT",
        ("Three blocks, 16 to 64 channels; compute is beside the ViT's supervised run.",),
        "objective",
        {"random init": "untrained supervised_resnet", **{run: f"{run}_resnet" for run in CLASSES}},
    ),
)


def variant(name):
    """What a name stands for: a variant, or a file of runs/small as it is."""
    name = name.removesuffix(FLOPS)
    return VARIANTS.get(name, Variant(name))
