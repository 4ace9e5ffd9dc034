"""Load a backbone, embed scans, and see by a linear probe what it tells apart.

    python examples/embed_and_probe.py

Cells for an editor that knows ``# %%``, or all at once from the shell. It reads the phantom cohort
(``python -m shards.phantom data/phantom``) and a backbone (``make demo`` trains one); the variables
BACKBONE, TABLE and LABEL name others. It needs the packages of ``scanfm[evaluate]``.
"""

# %% What to work on
import csv
import os
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from foundation.backbone import load_backbone
from foundation.embedding.features import embed
from foundation.embedding.modules import TimmBackbone
from foundation.embedding.token_map import token_map
from shards.scan import read_scan

BACKBONE = os.environ.get("BACKBONE", "runs/demo_mae/backbone")
TABLE = Path(os.environ.get("TABLE", "data/phantom/cohort.csv"))
LABEL = os.environ.get("LABEL", "body_part")  # two values; a disease is the harder question

# %% The backbone: its bytes are checked, and a stored embedding is computed again
backbone = load_backbone(BACKBONE)
contract = backbone.preprocessing
print(f"patch {backbone.vit.patch_size}, width {backbone.vit.embed_dim}, {contract}")

# %% One scan: a file goes through the whole contract, of a DICOM folder too
with TABLE.open(newline="", encoding="utf-8") as file:
    rows = list(csv.DictReader(file))
first = read_scan(TABLE.parent / rows[0]["scan"], modality=rows[0]["modality"])
with torch.inference_mode():
    features = embed(backbone, first)
    tokens = token_map(backbone, first)
print(f"class token {tuple(features.cls.shape)}, mean of patches {tuple(features.mean.shape)}")
print(f"token map {tuple(tokens.tokens.shape)}, first centre {tokens.affine[:3, 3]} mm (LPS)")

# %% All scans of the table (python -m foundation.embed does this with resume and a ledger)
embedded = []
with torch.inference_mode():
    for row in rows:
        found = embed(backbone, TABLE.parent / row["scan"], modality=row["modality"])
        embedded.append(torch.cat([found.cls, found.mean]).numpy())
x = np.stack(embedded)
y = np.array([row[LABEL] for row in rows]) == max(row[LABEL] for row in rows)
subjects = np.array([row["subject"] for row in rows])

# %% A linear probe; folds by subject, so that no one is in training and test
probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
folds = GroupKFold(n_splits=min(5, len(set(subjects))))
score = cross_val_predict(probe, x, y, groups=subjects, cv=folds, method="predict_proba")[:, 1]
auroc = float(roc_auc_score(y, score))
print(
    f"{LABEL}: cross-validated AUROC {auroc:.3f} of {len(y)} scans, {len(set(subjects))} subjects"
)

# %% The same network under a new head, for training: a copy, the backbone stays frozen
model = TimmBackbone(backbone, num_classes=2, trainable=True)
volume = torch.rand(2, backbone.vit.in_chans, *contract.crop_shape) * 2 - 1
loss = torch.nn.functional.cross_entropy(model(volume), torch.tensor([0, 1]))
loss.backward()
print(f"one step of fine-tuning would begin at a loss of {loss.item():.3f}")
