"""Adam on the touched rows of a table."""

import torch

from training.row_adam import RowAdam


def test_only_the_rows_of_the_step_move():
    table = torch.ones(4, 3)
    optimizer = RowAdam(table)
    optimizer.step(torch.tensor([1, 3]), torch.full((2, 3), 0.5), learning_rate=0.1)
    assert torch.equal(table[[0, 2]], torch.ones(2, 3))
    assert (table[[1, 3]] < 1).all()


def test_a_first_update_has_the_length_of_the_learning_rate_whenever_it_comes():
    table = torch.zeros(2, 3)
    optimizer = RowAdam(table)
    for _ in range(5):
        optimizer.step(torch.tensor([0]), torch.full((1, 3), 2.0), learning_rate=0.1)
    optimizer.step(torch.tensor([1]), torch.full((1, 3), 2.0), learning_rate=0.1)
    # atol: eps in the denominator.
    torch.testing.assert_close(table[1], torch.full((3,), -0.1), atol=1e-6, rtol=0)


def test_a_loaded_state_continues_like_the_saved_one():
    gradient = torch.tensor([[0.3, -0.2, 0.1]])
    tables = [torch.zeros(1, 3), torch.zeros(1, 3)]
    whole = RowAdam(tables[0])
    for _ in range(4):
        whole.step(torch.tensor([0]), gradient, 0.1)
    first = RowAdam(tables[1])
    for _ in range(2):
        first.step(torch.tensor([0]), gradient, 0.1)
    second = RowAdam(tables[1])
    second.load_state_dict(first.state_dict())
    for _ in range(2):
        second.step(torch.tensor([0]), gradient, 0.1)
    assert torch.equal(tables[0], tables[1])
