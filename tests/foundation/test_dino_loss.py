import math

import numpy as np
import pytest
import torch

from foundation.objective.dino_loss import (
    Temperatures,
    ln_k_distance,
    prototype_use,
    teacher_entropy,
    view_cross_entropy,
)


def test_the_loss_is_equation_1_of_the_paper() -> None:
    generator = torch.Generator().manual_seed(0)
    shares = torch.randn(2, 5, 7, generator=generator).softmax(-1)
    student = torch.randn(6, 5, 7, generator=generator)
    got = view_cross_entropy(shares, student, student_temp=0.1)
    # min over the student of the sum over x in two globals and x' != x in all views of H(Pt, Ps).
    terms = []
    for t in range(2):
        for s in range(6):
            if s != t:
                logits = student[s].double().numpy() / 0.1
                log_shares = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
                terms.append(-(shares[t].double().numpy() * log_shares).sum(-1).mean())
    assert len(terms) == 10
    assert got.item() == pytest.approx(np.mean(terms), rel=1e-5)


def test_the_loss_is_computed_in_float32() -> None:
    student = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0)).bfloat16()
    shares = torch.full((2, 5, 7), 1 / 7)
    with torch.autocast("cpu", torch.bfloat16):
        got = view_cross_entropy(shares, student, student_temp=0.1)
    assert torch.equal(got, view_cross_entropy(shares, student.float(), student_temp=0.1))


def test_teacher_temperature_rises_and_stays() -> None:
    rising = Temperatures(0.1, teacher=0.07, warmup_teacher=0.04, warmup_teacher_steps=4)
    found = [rising.teacher_at(step) for step in range(6)]
    assert found == pytest.approx([0.04, 0.05, 0.06, 0.07, 0.07, 0.07])
    assert rising._replace(warmup_teacher_steps=0).teacher_at(0) == 0.07


def test_entropy_is_1_for_uniform_and_0_for_one_prototype() -> None:
    assert teacher_entropy(torch.full((2, 3, 7), 1 / 7)).item() == pytest.approx(1.0)
    single = torch.nn.functional.one_hot(torch.tensor([2, 0, 2]), 7).float()
    assert teacher_entropy(single).item() == 0
    half = torch.tensor([[0.5, 0.5, 0, 0]])
    assert teacher_entropy(half).item() == pytest.approx(0.5)


def test_distance_to_ln_k_is_0_at_uniform_collapse() -> None:
    uniform = torch.full((2, 3, 7), 1 / 7)
    loss = view_cross_entropy(uniform, torch.zeros(4, 3, 7), student_temp=0.1)
    assert ln_k_distance(loss, num_prototypes=7).item() == pytest.approx(0.0, abs=1e-6)
    assert ln_k_distance(torch.tensor(math.log(7) / 4), num_prototypes=7) == pytest.approx(0.75)


def test_prototype_use_counts_within_each_view() -> None:
    best = torch.tensor([[0, 1, 2], [2, 2, 2]])
    shares = torch.nn.functional.one_hot(best, 5).float()
    assert prototype_use(shares).item() == pytest.approx((3 / 3 + 1 / 3) / 2)
    few = torch.nn.functional.one_hot(torch.tensor([[0, 1, 1, 0, 1]]), 2).float()
    assert prototype_use(few).item() == 1, "no more than the prototypes there are"
