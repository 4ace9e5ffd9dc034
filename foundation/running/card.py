"""The model card of a backbone, written from what its run recorded."""

from collections.abc import Mapping, Sequence
from typing import Any

from foundation.preprocessing import Preprocessing
from foundation.vit import VitConfig


def model_card(
    vit_config: VitConfig, *, preprocessing: Preprocessing, provenance: Mapping[str, Any]
) -> str:
    """Markdown: what the backbone is, what it saw, how to use it, what it is not for."""
    width, depth, heads = vit_config.resolved
    spacing = preprocessing.spacing_mm
    facts = {
        "method": provenance.get("method", "unknown"),
        "network": f"3D ViT, width {width}, depth {depth}, {heads} heads",
        "patch": f"{_by(vit_config.patch_size)} voxels",
        "crop": f"{_by(preprocessing.crop_shape)} voxels (D inferior to superior, H, W; LPS)",
        "spacing": f"{_by(spacing)} mm" if spacing else "each scan's own",
        "steps": provenance.get("steps", "unknown"),
        "scans seen": provenance.get("scans_seen", "unknown"),
        "compute": _compute(provenance),
        "finished": provenance.get("finished", "unknown"),
    }
    return "\n".join(
        [
            f"# {provenance.get('name', 'backbone')}",
            "",
            "A frozen backbone for 3D medical scans, pretrained without labels.",
            "",
            *_table(("", ""), [(name, str(value)) for name, value in facts.items()]),
            "",
            "## Trained on",
            "",
            *_sources(provenance.get("shards", {})),
            "",
            *_beginning(provenance.get("initialised_from")),
            "## Use",
            "",
            "    python -m foundation.embed THIS_FOLDER SCANS --out features.csv",
            "",
            "Orientation, spacing, intensity windows and crop are in `preprocessing.json` and are",
            "applied by the command. Checksums and a stored embedding are verified on loading.",
            "",
            "## Limits",
            "",
            "For research on features of scans like those above. Not a medical device; no claim",
            "is made for other modalities, body parts or scanners, or for any single patient.",
            "",
        ]
    )


def _compute(provenance: Mapping[str, Any]) -> str:
    if "hours" not in provenance:
        return "unknown"
    return f"{provenance['hours']:.2f} h x {provenance['world_size']} {provenance['device']}"


def _sources(shards: Mapping[str, Any]) -> list[str]:
    if not shards:
        return ["Unknown."]
    head = (
        f"{shards['num_samples']} scans of {shards['num_subjects']} subjects, "
        f"shards `{shards['name']}` (digest `{shards['digest'][:16]}`)."
    )
    rows = [
        (source["name"], str(source["num_samples"]), source["licence"], source["source"])
        for source in shards.get("sources", [])
    ]
    return [head, "", *_table(("cohort", "scans", "licence", "source"), rows)]


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
    return ["## Begun from", "", told, "", *_table(("", ""), rows), ""]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def _by(numbers: Sequence[float]) -> str:
    return " x ".join(f"{number:g}" for number in numbers)
