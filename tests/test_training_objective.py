"""The losses against closed forms, and gradients that neither chunks nor processes change."""

from __future__ import annotations

import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gradients_of_processes import ROWS, cached_step, embed, encoder, texts

from training.objective import Direction, Keys, Objective, Vectors, distillation, info_nce
from training.processes import Processes

ALONE = Processes(0, 1, torch.device("cpu"))
SCRIPT = Path(__file__).parent / "gradients_of_processes.py"


def unit(*degrees: float) -> torch.Tensor:
    """Vectors on the unit circle."""
    angles = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


def distinct_keys(rows: int, negatives: int) -> Keys:
    keys = torch.arange(rows * (2 + negatives)).reshape(rows, -1)
    return Keys(keys[:, 0], keys[:, 1], keys[:, 2:])


def no_negatives(rows: int) -> torch.Tensor:
    return torch.zeros(rows, 0, 2, dtype=torch.float64)


def test_info_nce_is_the_closed_form() -> None:
    vectors = Vectors(unit(0, 90), unit(30, 60), no_negatives(2))
    # Each query is 30 degrees from its own positive and 60 from the other.
    one = -math.log(
        math.exp(math.cos(math.pi / 6) / 0.5) / (math.exp(math.cos(math.pi / 6) / 0.5) + math.exp(0.5 / 0.5))
    )
    assert float(info_nce(vectors, distinct_keys(2, 0), range(2), 0.5)) == pytest.approx(2 * one, abs=1e-12)


def test_hard_negatives_of_every_query_count_for_every_query() -> None:
    vectors = Vectors(unit(0, 90), unit(30, 60), unit(180, 270).reshape(2, 1, 2))
    right, wrong = math.cos(math.pi / 6), math.cos(math.pi / 3)
    # The first query sees the negatives at cosines -1 and 0, the second at 0 and -1.
    sum_s = sum(math.exp(cosine / 0.5) for cosine in (right, wrong, -1, 0))
    loss = info_nce(vectors, distinct_keys(2, 1), range(2), 0.5)
    assert float(loss) == pytest.approx(-2 * math.log(math.exp(right / 0.5) / sum_s), abs=1e-12)


def test_a_text_that_is_known_to_be_right_is_no_negative() -> None:
    vectors = Vectors(unit(0, 0, 90), unit(10, 10, 80), unit(10, 200, 300).reshape(3, 1, 2))
    # Rows 0 and 1 have one positive, and row 0's hard negative is that same text.
    keys = Keys(torch.tensor([1, 2, 3]), torch.tensor([7, 7, 8]), torch.tensor([[7], [20], [21]]))
    cosines = [math.cos(math.radians(angle)) for angle in (10, 80, 200, 300)]
    sum_s = sum(math.exp(cosine / 0.1) for cosine in cosines)
    loss = float(info_nce(vectors, keys, range(1), 0.1))
    assert loss == pytest.approx(-math.log(math.exp(cosines[0] / 0.1) / sum_s), abs=1e-9)
    # The same query with another positive: both are right.
    keys = Keys(torch.tensor([1, 1, 3]), torch.tensor([7, 9, 8]), torch.tensor([[19], [20], [21]]))
    cosines = [math.cos(math.radians(angle)) for angle in (10, 80, 10, 200, 300)]
    sum_s = sum(math.exp(cosine / 0.1) for cosine in cosines)
    loss = float(info_nce(vectors, keys, range(1), 0.1))
    assert loss == pytest.approx(-math.log(math.exp(cosines[0] / 0.1) / sum_s), abs=1e-9)


def test_a_query_s_own_text_and_the_other_positives_of_its_query_are_no_negatives() -> None:
    vectors = Vectors(unit(0, 40, 0), unit(10, 0, 80), unit(300, 200, 10).reshape(3, 1, 2))
    # Row 1's positive is row 0's query; row 2 asks the same as row 0 and has row 0's positive as a hard negative.
    keys = Keys(torch.tensor([1, 2, 1]), torch.tensor([7, 1, 8]), torch.tensor([[30], [31], [7]]))
    for row, own, others in ((0, 10, (300, 200)), (2, 80, (300, 200))):
        cosines = [math.cos(math.radians(angle)) for angle in (own, *others)]
        sum_s = sum(math.exp(cosine / 0.1) for cosine in cosines)
        loss = float(info_nce(vectors, keys, range(row, row + 1), 0.1))
        assert loss == pytest.approx(-math.log(math.exp(cosines[0] / 0.1) / sum_s), abs=1e-9)


def test_distillation_is_zero_where_student_and_teacher_agree_and_the_closed_form_elsewhere() -> None:
    vectors = Vectors(unit(0), unit(60), unit(90).reshape(1, 1, 2))
    agreeing = torch.tensor([[0.5 / 0.1, 0.0]], dtype=torch.float64)
    assert float(distillation(vectors, range(1), agreeing, 0.1, 1.0)) == pytest.approx(0, abs=1e-12)
    student = math.exp(5) / (math.exp(5) + 1)
    loss = math.log(0.5 / student) / 2 + math.log(0.5 / (1 - student)) / 2
    even = torch.zeros(1, 2, dtype=torch.float64)
    assert float(distillation(vectors, range(1), even, 0.1, 1.0)) == pytest.approx(loss, abs=1e-9)


def test_the_gradient_of_distillation_does_not_vanish_at_the_report_s_temperature() -> None:
    def gradient_norm(temperature: float) -> float:
        queries = unit(0).requires_grad_(True)
        vectors = Vectors(queries, unit(60), unit(60.5).reshape(1, 1, 2))
        distillation(vectors, range(1), torch.tensor([[4.0, -4.0]], dtype=torch.float64), temperature, 1.0).backward()
        assert queries.grad is not None
        return float(queries.grad.norm())

    # Scaled by temperature ** 2, as softened classes are, it would be ten thousand times smaller.
    assert gradient_norm(0.01) > gradient_norm(1.0)


@pytest.mark.parametrize("negatives", [0, 1, 7])
@pytest.mark.parametrize("direction", ["query_to_passage", "both"])
def test_cached_gradients_are_the_plain_ones_with_dropout_on(negatives: int, direction: Direction) -> None:
    objective = Objective(0.05, direction, alpha=0.2)
    cached, plain = encoder(dropout=0.3).train(), encoder(dropout=0.3).train()
    torch.manual_seed(11)
    loss = cached_step(cached, objective, ALONE, negatives)
    torch.manual_seed(11)
    values, keys, teacher = texts(negatives)
    # The same chunks, so that dropout falls alike, and one graph over all of them.
    found = torch.cat([embed(plain, chunk) for chunk in values.flatten(0, 1).split(3)]).unflatten(0, (ROWS, -1))
    vectors = Vectors(found[:, 0], found[:, 1], found[:, 2:])
    whole = objective.add_up(vectors, keys, range(ROWS), teacher if negatives else None)
    whole.backward()
    assert loss == pytest.approx(float(whole.detach()), abs=1e-12)
    for one, other in zip(cached.parameters(), plain.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert (one.grad - other.grad).abs().max() < 1e-9 * other.grad.abs().max()


@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_find_the_gradients_of_one_with_the_whole_batch(tmp_path: Path, count: int) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    file = tmp_path / "gradients.pt"
    started = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(file), "0", "1", "7"],
            env=os.environ
            | {"RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
            cwd=SCRIPT.parent.parent,
        )
        for rank in range(count)
    ]
    assert [process.wait(120) for process in started] == [0] * count
    for (negatives, direction), (loss, gradients) in torch.load(file).items():
        model = encoder()
        expected = cached_step(model, Objective(0.01, direction, alpha=0.2), ALONE, negatives)
        assert loss == pytest.approx(expected, rel=1e-12)
        for weight, gradient in zip(model.parameters(), gradients, strict=True):
            assert weight.grad is not None
            assert (weight.grad - gradient).abs().max() < 1e-9 * weight.grad.abs().max()
