"""Seven phantom tasks by all protocols in the quick tier, from extracted features to the store."""

import time
from pathlib import Path
from tempfile import TemporaryDirectory

from evaluation.extraction.sharing import ALONE
from evaluation.run import main as evaluate
from evaluation.scoring.config import EvaluationConfig
from evaluation.scoring.gather import FEATURES, fill_features
from evaluation.scoring.inputs import load_inputs
from foundation.backbone import save_backbone
from foundation.recipe import PretrainConfig
from foundation.vit import build_vit
from recipes.load import load, parse
from shards.bench.timing import Line, spread
from shards.phantom.cohort import write_cohort
from shards.pseudonym import load_key

NUM_SUBJECTS = 100  # two scans each
AT_MOST_S = 180.0
DISEASES = ("stroke", "neurodegenerative", "infection", "diabetes", "copd", "cancer",
            "cardiovascular")  # fmt: skip
METHODS = ("mae", "dino")


def whole_lines(
    *, num_subjects: int = NUM_SUBJECTS, diseases: tuple[str, ...] = DISEASES
) -> list[Line]:
    """Time what comes after extraction: the gate, every probe, statistics. All cores."""
    with TemporaryDirectory(prefix="scanfm-bench-") as folder:
        config = _prepared(Path(folder), num_subjects=num_subjects, diseases=diseases)
        fill_features(
            load_inputs(config, device="cpu"),
            open_test=config.test == "open",
            folder=config.out / config.name / FEATURES,
            share=ALONE,
        )
        start = time.monotonic()
        evaluate(config)
        taken_s = time.monotonic() - start
    part = f"{len(diseases)} phantom tasks, {2 * num_subjects} scans, quick tier, after extraction"
    return [
        Line(part, "share of 3 minutes", spread([taken_s]), "s", taken_s / AT_MOST_S, at_most=1.0)
    ]


def _prepared(folder: Path, *, num_subjects: int, diseases: tuple[str, ...]) -> EvaluationConfig:
    """A cohort and an untrained backbone of each of the demo's architectures."""
    write_cohort(folder / "phantom", subjects=num_subjects, seed=1, workers=1)
    load_key(folder / "key")
    for method in METHODS:
        recipe = load(f"recipes/pretrain/demo_{method}.yaml", PretrainConfig)
        save_backbone(
            folder / method / "backbone",
            vit=build_vit(recipe.vit),
            vit_config=recipe.vit,
            preprocessing=recipe.preprocessing,
            recipe=recipe.model_dump(mode="json"),
            provenance={
                "method": method, "subjects": [], "source_digests": [], "perceptual_hashes": [],
            },
        )  # fmt: skip
    tree = {
        "name": "bench",
        "title": "Bench",
        "data_root": str(folder),
        "out": str(folder / "stores"),
        "pseudonym_key": str(folder / "key"),
        "backbones": {method: str(folder / method / "backbone") for method in METHODS},
        "tasks": [f"recipes/tasks/phantom_{disease}.yaml" for disease in diseases],
        "tier": "quick",
        "device": "cpu",
    }
    return parse(tree, EvaluationConfig, where="bench")
