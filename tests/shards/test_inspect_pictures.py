"""How a slice becomes a small picture and a mask an outline, against hand-sized cases."""

import base64
import io

import numpy as np
from PIL import Image

from shards.inspect.pictures import outline, picture


def test_an_outline_follows_every_border_between_labels() -> None:
    assert outline(np.zeros((3, 4), np.uint8)) == ""
    labels = np.array([[1, 2, 0], [1, 2, 0]], np.uint8)
    assert outline(labels) == "M0 0h2M0 2h2M0 0v2M1 0v2M2 0v2"


def test_a_large_slice_is_averaged_down() -> None:
    values = np.zeros((3, 700), np.float32)
    values[:, 1::2] = 100
    content = base64.b64decode(picture(values, window=(0, 100)).partition(",")[2])
    shown = np.asarray(Image.open(io.BytesIO(content)))
    assert shown.shape == (3, 234)  # blocks of 3, the last of 1
    assert shown[0, 0] == round(255 / 3)
    assert shown[0, -1] == 255
