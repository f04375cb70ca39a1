"""What a user meets by name: where it is from, and what it says of itself."""

from __future__ import annotations

import inspect
import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import cylstm
from cylstm import losses, optim, steps

PUBLIC = {f"cylstm.{name}": getattr(cylstm, name) for name in cylstm.__all__}
PUBLIC |= {
    f"{module.__name__}.{name}": getattr(module, name)
    for module in (losses, optim, steps)
    for name in module.__all__
}


def test_nothing_is_named_by_the_extension() -> None:
    for name, value in PUBLIC.items():
        assert getattr(value, "__module__", "cylstm") != "cylstm._core", name
    for kind in (cylstm.Tape, cylstm.Stream, cylstm.Gradients):
        assert kind.__module__ == "cylstm"
        assert repr(kind) == f"<class 'cylstm.{kind.__name__}'>"
        assert getattr(cylstm, kind.__qualname__) is kind


def objects() -> list[tuple[Any, str]]:
    x = np.ones((5, 3, 8), np.float32)
    lstm, gru = cylstm.LSTM(8, 4, batch_first=True), cylstm.GRU(8, 4)
    linear, table = cylstm.Linear(4, 2), cylstm.Embedding(10, 4)
    tape, of_gru = lstm.forward(x), gru.forward(x)
    out, looked_up = linear.forward(tape.y), table.forward([[1, 2, 1]])
    parameter = cylstm.Parameter(np.zeros(4, np.float32)).forward((3, 4))
    head = out.backward(out.y)
    weights = "weights=['weight_ih_l0', 'weight_hh_l0', 'bias_ih_l0', 'bias_hh_l0']"
    gru_grads = of_gru.backward(of_gru.y).weights
    adam = optim.Adam([linear, table])
    rows = looked_up.backward(looked_up.y)
    adam.step([head, rows])
    lstm_repr = repr(lstm)
    return [
        (tape, "Tape(y=(5, 3, 4), h_n=(1, 5, 4), c_n=(1, 5, 4))"),
        (of_gru, "Tape(y=(5, 3, 4), h_n=(1, 3, 4))"),
        (
            tape.backward(tape.y, need_x=False),
            f"Gradients(h_0=(1, 5, 4), c_0=(1, 5, 4), {weights})",
        ),
        (
            gru_grads,
            "WeightGrads(weight_ih_l0=(12, 8), weight_hh_l0=(12, 4), bias_ih_l0=(12,), "
            "bias_hh_l0=(12,), dtype=float32)",
        ),
        (out, "LinearTape(y=(5, 3, 2))"),
        (head, "LinearGrads(x=(5, 3, 4), weights=['weight', 'bias'])"),
        (out.backward(out.y, need_x=False), "LinearGrads(weights=['weight', 'bias'])"),
        (looked_up, "EmbeddingTape(y=(1, 3, 4))"),
        (rows, "LeafGrads(weights=['weight'])"),
        (rows.weights, "RowGrads(2 rows of weight=(10, 4), dtype=float32)"),
        (parameter, "ParameterTape(y=(3, 4))"),
        (lstm.stream(2), f"Stream({lstm_repr}, batch_size=2)"),
        (
            adam,
            "Adam([Linear, Embedding], lr=0.001, betas=(0.9, 0.999), eps=1e-08, "
            "weight_decay=0.0, steps=1)",
        ),
    ]


@pytest.mark.parametrize(("value", "text"), [pytest.param(*o, id=o[1][:20]) for o in objects()])
def test_it_says_what_it_is(value: Any, text: str) -> None:
    assert repr(value) == text


def test_every_class_says_what_it_is() -> None:
    for name, value in PUBLIC.items():
        if inspect.isclass(value):
            assert value.__repr__ is not object.__repr__, name


def test_gradients_are_pickled() -> None:
    linear = cylstm.Linear(3, 2)
    tape = cylstm.LSTM(2, 3).forward(np.ones((4, 2), np.float32))
    for grads in (tape.backward(tape.y), linear.forward(tape.y).backward(linear(tape.y))):
        again = pickle.loads(pickle.dumps(grads))
        assert type(again) is type(grads)
        for name, value in grads.weights.items():
            assert np.array_equal(again.weights[name], value)


@pytest.mark.parametrize(
    "call",
    ["Tape.backward(other)", "Tape.backward_truncated(other, 1, 1)"]
    + ["Stream.step(other, 1)", "Stream.run(other, 1)", "Stream.reset(other)"],
)
def test_a_method_of_another_object_is_refused(call: str) -> None:
    """In a process of its own, which reading the fields of any object would end."""
    code = (
        f"import cylstm\nother = object()\ntry: cylstm.{call}\nexcept TypeError: print('refused')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "refused\n", done


def test_help_shows_the_arguments() -> None:
    """Of compiled methods too, whose signatures Python can only read from their docstrings."""
    for kind in (cylstm.Tape, cylstm.Stream, cylstm.Gradients):
        for name, method in vars(kind).items():
            if callable(method) and not name.startswith("_"):
                assert list(inspect.signature(method).parameters)[0] == "self", name
    assert str(inspect.signature(cylstm.Stream.step)) == "(self, /, x_t, *, out=None, active=None)"
