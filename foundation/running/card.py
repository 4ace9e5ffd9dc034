"""The model card of a backbone, written from what its run recorded."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from foundation.artefact.benchmark import Scored
from foundation.artefact.curve import Curve, in_bars
from foundation.artefact.footprint import compute_in_words, energy_in_words
from foundation.artefact.head import HeadSettings
from foundation.artefact.licences import strictest
from foundation.preprocessing import Preprocessing
from foundation.running import tuned_card
from foundation.vit import VitConfig

_OPENING = "A frozen backbone for 3D medical scans, pretrained without labels."
_USE = """
    python -m foundation.embed THIS_FOLDER SCANS --out features.csv

Orientation, spacing, intensity windows and crop are in `preprocessing.json` and are applied by the
command. Checksums and a stored embedding are verified on loading; no file can run code.
"""
_INTENDED = """
For research: frozen features of scans like those above, for probes, retrieval and clustering, or
as the first weights of a network that is then trained and validated for its own purpose.
"""
_LIMITS = """
Not a medical device, and no part of one: nothing here was validated for any single patient. No
claim is made for other modalities, body parts, scanners, populations or spacings than those above.
Features can tell scanner and site apart, and a probe on them can learn that instead of a disease:
test on sites that training has not seen. What training scans lacked, features may not hold.
"""
_RECIPE_SECTIONS = ("train", "optimiser", "deepspeed", "reading")


def model_card(
    vit_config: VitConfig,
    *,
    preprocessing: Preprocessing,
    provenance: Mapping[str, Any],
    recipe: Any = None,
    benchmark: Sequence[Scored] = (),
    settings: HeadSettings | None = None,
) -> str:
    """Markdown: what the backbone is, what it saw, what it cost, how good it is, what it is for.

    Args:
        vit_config: Of the network.
        preprocessing: The contract.
        provenance: What the run recorded; whatever is missing is told as unknown.
        recipe: The resolved recipe, if it is known.
        benchmark: Rows from evaluation.
        settings: Of the head, if it was fine-tuned.
    """
    sections = {
        "": _facts(
            vit_config,
            preprocessing=preprocessing,
            provenance=provenance,
            is_tuned=settings is not None,
        ),
        **_tuned(settings, provenance=provenance),
        "Trained on": _sources(provenance.get("shards") or {}),
        "Begun from": _beginning(provenance.get("initialised_from")),
        "Licence": _licence(provenance),
        "Recipe": _recipe(recipe, provenance=provenance),
        "Training": _training(provenance),
        "Benchmark": _benchmark(benchmark, is_tuned=settings is not None),
        **_ending(settings, provenance=provenance),
    }
    name = _cell(provenance.get("name", "backbone"))
    lines = [*_front_matter(provenance, settings=settings), f"# {name}", ""]
    lines += [tuned_card.OPENING if settings else _OPENING]
    for title, content in sections.items():
        if content:
            lines += ["", *([f"## {title}", ""] if title else []), *content]
    return "\n".join(lines) + "\n"


def licences_of(provenance: Mapping[str, Any]) -> list[str]:
    """Of every source, and of the weights that training began from; at least one, if unknown."""
    sources = (provenance.get("shards") or {}).get("sources", [])
    names = [str(source["licence"]) for source in sources]
    begun = provenance.get("initialised_from")
    return [*names, *([str(begun["licence"])] if begun else [])] or ["unknown"]


def _tuned(settings: HeadSettings | None, *, provenance: Mapping[str, Any]) -> dict[str, list[str]]:
    """The sections that only a fine-tuned model has."""
    if settings is None:
        return {}
    told, scores = tuned_card.validation(provenance)
    return {
        "Predicts": _table(("", ""), tuned_card.predicts(settings, provenance)),
        "Fine-tuning": _table(("", ""), tuned_card.training(settings, provenance)),
        "Validation": [told, "", *_table(("metric", "score [95% interval]"), scores)]
        if scores
        else [],
        "Calibration": _table(("", ""), tuned_card.calibration(settings.calibration)),
    }


def _ending(
    settings: HeadSettings | None, *, provenance: Mapping[str, Any]
) -> dict[str, list[str]]:
    """How it is used, what for, and what for not."""
    use = tuned_card.use_of(settings.target) if settings else _USE
    limits = tuned_card.limits_of(provenance) if settings else _LIMITS
    return {
        "Use": use.strip("\n").splitlines(),
        "Intended use": (tuned_card.INTENDED if settings else _INTENDED).strip().splitlines(),
        "Limits": limits.strip().splitlines(),
    }


def _front_matter(provenance: Mapping[str, Any], *, settings: HeadSettings | None) -> list[str]:
    """What the hub reads."""
    licence = strictest(licences_of(provenance))
    about: dict[str, Any] = {"license": licence.hub}
    if licence.hub == "other":
        about["license_name"] = licence.name.lower().replace(" ", "-")
    about["library_name"] = "scanfm"
    about["pipeline_tag"] = (
        tuned_card.pipeline_tag(settings.target) if settings else "image-feature-extraction"
    )
    method = [str(provenance["method"])] if "method" in provenance else []
    kind = ["fine-tuned", settings.target.kind] if settings else ["self-supervised"]
    about["tags"] = ["medical", "3d", *kind, *method]
    return ["---", *yaml.safe_dump(about, sort_keys=False).splitlines(), "---", ""]


def _facts(
    vit_config: VitConfig,
    *,
    preprocessing: Preprocessing,
    provenance: Mapping[str, Any],
    is_tuned: bool,
) -> list[str]:
    width, depth, heads = vit_config.resolved
    spacing = preprocessing.spacing_mm
    facts = {
        "method": provenance.get("method", "unknown"),
        "network": f"3D ViT, width {width}, depth {depth}, {heads} heads",
        "patch": f"{_by(vit_config.patch_size)} voxels",
        "crop": f"{_by(preprocessing.crop_shape)} voxels (D inferior to superior, H, W; LPS)",
        "spacing": f"{_by(spacing)} mm" if spacing else "each scan's own",
        "steps": provenance.get("steps", "unknown"),
        "weights of": provenance.get("weights") or "",
        "scans seen": provenance.get("scans_seen", "" if is_tuned else "unknown"),
        "compute": compute_in_words(provenance),
        "energy": energy_in_words(provenance),
        "finished": provenance.get("finished", "unknown"),
        "code": ", ".join(f"{k} {v}" for k, v in provenance.get("versions", {}).items()),
    }
    return _table(("", ""), [(name, value) for name, value in facts.items() if value != ""])


def _sources(shards: Mapping[str, Any]) -> list[str]:
    if not shards:
        return ["Unknown."]
    told = f"{shards['num_samples']} scans of {shards['num_subjects']} subjects"
    modalities = ", ".join(f"{n} {name}" for name, n in shards.get("modalities", {}).items())
    sources = [
        (each["name"], each["num_samples"], each["licence"], each["source"])
        for each in shards.get("sources", [])
    ]
    folders = [
        (each["name"], each["num_samples"], each["num_subjects"], f"`{each['digest']}`")
        for each in shards.get("folders", [shards])
    ]
    return [
        told + (f" ({modalities})." if modalities else "."),
        "",
        *_table(("cohort", "scans", "licence", "source"), sources),
        "",
        *_table(("shards", "scans", "subjects", "digest"), folders),
    ]


def _beginning(begun: Mapping[str, Any] | None) -> list[str]:
    """Where the first weights are from, and what their licence asks of these."""
    if not begun:
        return []
    rows = [
        ("weights", f"`{begun['name']}`"),
        ("network", begun["architecture"]),
        ("licence", begun["licence"]),
        ("digest", f"`{begun['digest'][:16]}`"),
        ("taken over", f"{begun['report']['coverage']:.1%} of the parameters"),
    ]
    told = "These weights are derived from others, whose licence holds for them too."
    return [told, "", *_table(("", ""), rows)]


def _licence(provenance: Mapping[str, Any]) -> list[str]:
    names = licences_of(provenance)
    most = strictest(names)
    others = sorted(set(names) - {most.name})
    more = f" Those of the other parts hold beside it: {'; '.join(others)}." if others else ""
    told = (
        f"**{_cell(most.name)}** ({most.kind}: {most.asks}), the most restrictive of what the "
        f"weights were made from.{_cell(more)} Whoever passes them on answers for keeping to it."
    )
    return textwrap.wrap(told, width=100, break_long_words=False)


def _recipe(recipe: Any, *, provenance: Mapping[str, Any]) -> list[str]:
    if not isinstance(recipe, Mapping):
        return []
    names = [str(provenance.get("method", "")), *_RECIPE_SECTIONS]
    rows = [
        (name, ", ".join(f"{key} {value}" for key, value in section.items() if value is not None))
        for name in names
        if isinstance(section := recipe.get(name), Mapping)
    ]
    if not rows:
        return []
    digest = provenance.get("recipe_digest")
    told = f"Whole in `recipe.yaml`{f', digest `{digest[:16]}`' if digest else ''}. Of it:"
    return [told, "", *_table(("section", "settings"), rows)]


def _training(provenance: Mapping[str, Any]) -> list[str]:
    curve: Curve = provenance.get("loss_curve") or []
    if not curve:
        return []
    first, last = curve[0][1], curve[-1][1]
    head = (
        f"Loss `{in_bars(curve)}` from {first:.4g} to {last:.4g}, means over equal spans of steps."
    )
    steps = [f"{step:g}" for step, _ in curve]
    losses = [f"{loss:.4g}" for _, loss in curve]
    return [head, "", *_table(("up to step", *steps), [("loss", *losses)])]


def _benchmark(rows: Sequence[Scored], *, is_tuned: bool) -> list[str]:
    if not rows:
        return []
    names = ("task", "protocol", "metric", "split", "n", "score [95% interval]", "best floor")
    state = "As it is" if is_tuned else "Frozen"
    told = f"{state}, by `evaluation.run`; a floor needs no pretraining, and what does not beat it"
    return [f"{told} has gained nothing.", "", *_table(names, rows)]


def _table(head: Sequence[Any], rows: Sequence[Sequence[Any]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(_cell(cell) for cell in cells) + " |" for cells in lines]


def _cell(value: Any) -> str:
    """On one line, and no end of a cell."""
    return " ".join(str(value).split()).replace("|", "\\|")


def _by(numbers: Sequence[float]) -> str:
    return " x ".join(f"{number:g}" for number in numbers)
