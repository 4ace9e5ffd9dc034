import pytest

from foundation.methods import METHODS, MethodSections, build_method
from foundation.preprocessing import Preprocessing
from foundation.vit import VitConfig, build_vit
from recipes.load import RecipeError, parse

SMALL = {
    "mae": {},
    "dino": {"local_crops": {"shape": [4, 8, 9]}, "head": {"num_prototypes": 40, "hidden_dim": 32}},
}


@pytest.mark.parametrize("name", METHODS)
def test_the_section_that_is_present_chooses_the_method(name: str, crop_batch) -> None:
    sections = parse({name: SMALL[name]}, MethodSections, where="recipe")
    assert sections.method_name == name
    vit = build_vit(VitConfig(size="toy", patch_size=(2, 4, 3), depth=1))
    method = build_method(
        sections,
        vit=vit,
        preprocessing=Preprocessing(crop_shape=(4, 12, 15)),
        total_steps=5,
        seed=0,
    )
    assert method.backbone.embed_dim == vit.embed_dim
    loss, metrics = method(crop_batch((4, 12, 15), positions=[0, 1]), 0)
    assert loss.ndim == 0
    assert not any(value.requires_grad for value in metrics.values())
    method.after_update(0)


@pytest.mark.parametrize("tree", [{}, {name: {} for name in METHODS}])
def test_a_recipe_has_exactly_one_method(tree) -> None:
    with pytest.raises(RecipeError, match="exactly one of the sections"):
        parse(tree, MethodSections, where="recipe")
